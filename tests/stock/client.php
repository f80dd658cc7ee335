<?php
// What a PHP client does with a server; prints one line for each thing that it saw.
// php client.php PORT CASE [WORKLOAD BYTES]

function client(): GearmanClient
{
    global $argv;
    $client = new GearmanClient();
    $client->addServer('127.0.0.1', (int) $argv[1]);
    $client->setTimeout(20000);
    return $client;
}

function say(string ...$words): void
{
    echo implode(' ', $words), "\n";
}

$client = client();
switch ($argv[2]) {
    case 'foreground':
        foreach (['doNormal', 'doHigh', 'doLow'] as $method) {
            say($client->$method('reverse', 'Hello', 'my-unique'));
        }
        break;
    case 'progress':
        $client->setStatusCallback(fn ($task) => say('status', $task->taskNumerator(), $task->taskDenominator()));
        $client->setDataCallback(fn ($task) => say('data', $task->data()));
        $client->setWarningCallback(fn ($task) => say('warning', $task->data()));
        $client->setCompleteCallback(fn ($task) => say('complete', $task->data()));
        $client->addTask('chatty', 'work');
        $client->runTasks();
        break;
    case 'exception':
        $client->enableExceptionHandler();
        $client->setExceptionCallback(function ($task) {
            say('exception', $task->data());
        });
        $client->setFailCallback(fn ($task) => say('fail'));
        $client->addTask('throws', 'work');
        $client->runTasks();
        break;
    case 'tasks':
        $client->setCompleteCallback(fn ($task) => say($task->unique(), $task->data()));
        for ($number = 0; $number < 50; ++$number) {
            $add = ['addTask', 'addTaskHigh', 'addTaskLow'][$number % 3];
            $client->$add('reverse', "task-$number", null, "unique-$number");
        }
        $client->runTasks();
        break;
    case 'background':
        foreach (['normal' => 'doBackground', 'high' => 'doHighBackground', 'low' => 'doLowBackground'] as $name => $method) {
            $handle = $client->$method('later', $name, "my $name");
            [$known, $running, $numerator, $denominator] = $client->jobStatus($handle);
            say($name, $known ? 'known' : 'unknown', $running ? 'running' : 'queued');
        }
        [$known, $running] = $client->jobStatus('H:nobody:1');
        say('nobody', $known ? 'known' : 'unknown', $running ? 'running' : 'queued');
        break;
    case 'large':
        $workload = str_repeat("\0binary\n", (int) ($argv[3] / 8));
        say($client->doNormal('reverse', $workload) === strrev($workload) ? 'equal' : 'different');
        break;
    case 'ping':
        say($client->ping('anything') ? 'pong' : 'nothing');
        break;
}
