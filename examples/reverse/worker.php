<?php
// Worker in PHP: reverses what it is given.
// php worker.php HOST PORT

$worker = new GearmanWorker();
$worker->addServer($argv[1], (int) $argv[2]);
$worker->addFunction('reverse', fn (GearmanJob $job) => strrev($job->workload()));
while ($worker->work()) {
}
