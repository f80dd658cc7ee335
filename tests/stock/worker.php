<?php
// A PHP worker; runs until it is killed, or until it has done as many jobs as it is told.
// php worker.php PORT [JOBS]

$worker = new GearmanWorker();
$worker->addServer('127.0.0.1', (int) $argv[1]);
$worker->addFunction('reverse', fn ($job) => strrev($job->workload()));
$worker->addFunction('unique', fn ($job) => $job->unique());
$worker->addFunction('chatty', function ($job) {
    $job->sendStatus(1, 4);
    $job->sendData('part');
    $job->sendWarning('careful');
    $job->sendStatus(4, 4);
    return 'done';
});
$worker->addFunction('throws', function ($job) {
    $job->sendException('out of paper');
});
$worker->addFunction('fails', function ($job) {
    $job->sendFail();
});
$worker->addFunction('later', function ($job) {
    echo $job->workload(), "\n";
});
// Within a second, and not before a line is written to its standard input.
$worker->addFunction('slow', fn ($job) => trim(fgets(STDIN)), null, 1000);
echo "ready\n";
for ($jobs = (int) ($argv[2] ?? PHP_INT_MAX); $jobs > 0 && @$worker->work(); --$jobs) {
}
