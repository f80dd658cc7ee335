<?php
// Client and worker with PHP's extension, which is libgearman below.

[, $mode] = $argv;
$port = (int)($argv[2] ?? 0);
const WORKLOAD = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

function begin(): void
{
    fwrite(STDOUT, "begin\n");
}

function finish(): void
{
    fwrite(STDOUT, "end\n");
    stream_get_contents(STDIN);
}

function submit(int $port, int $jobs, int $outstanding): void
{
    $client = new GearmanClient();
    $client->addServer('127.0.0.1', $port);
    $client->doNormal('load', WORKLOAD);
    begin();
    if ($outstanding === 1) {
        for ($i = 0; $i < $jobs; $i++) {
            $client->doNormal('load', WORKLOAD);
            if ($client->returnCode() !== GEARMAN_SUCCESS) {
                exit($client->error() . "\n");
            }
        }
    }
    while ($outstanding > 1 && $jobs > 0) {
        $together = min($jobs, $outstanding);
        for ($i = 0; $i < $together; $i++) {
            $client->addTask('load', WORKLOAD);
        }
        if (!$client->runTasks()) {
            exit($client->error() . "\n");
        }
        $jobs -= $together;
    }
    finish();
}

function work(int $port): void
{
    $worker = new GearmanWorker();
    $worker->addServer('127.0.0.1', $port);
    $worker->addFunction('load', fn (GearmanJob $job) => $job->workload());
    while ($worker->work());
}

function register(int $port, int $count): void
{
    begin();
    $worker = new GearmanWorker();
    $worker->addServer('127.0.0.1', $port);
    $take = function (GearmanJob $job): string {
        finish();
        return '';
    };
    for ($i = 1; $i <= $count; $i++) {
        $worker->addFunction($i < $count ? "load-$i" : 'load', $take);
    }
    while ($worker->work());
}

match ($mode) {
    'version' => print('PHP ' . PHP_MAJOR_VERSION . '.' . PHP_MINOR_VERSION . ' with gearman ' . phpversion('gearman') . "\n"),
    'client' => submit($port, (int)$argv[3], (int)$argv[4]),
    'worker' => work($port),
    'functions' => register($port, (int)$argv[3]),
};
