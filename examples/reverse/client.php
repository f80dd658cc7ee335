<?php
// Client in PHP: has a text reversed, and waits for the result.
// php client.php HOST PORT TEXT

$client = new GearmanClient();
$client->addServer($argv[1], (int) $argv[2]);
$result = $client->doNormal('reverse', $argv[3]);
if ($client->returnCode() !== GEARMAN_SUCCESS) {
    fwrite(STDERR, "no result: {$client->error()}\n");
    exit(1);
}
echo $result, "\n";
