# Client and worker with Perl's Gearman::Client and Gearman::Worker.
use strict;
use warnings;
use Gearman::Client;
use Gearman::Worker;

my ($mode, $port, @numbers) = @ARGV;
my $workload = "\0" x 32;
$| = 1;

sub begin { print "begin\n" }

sub end {
    print "end\n";
    1 while <STDIN>;
}

sub submit {
    my ($jobs, $outstanding) = @_;
    my $client = Gearman::Client->new(job_servers => ["127.0.0.1:$port"]);
    $client->do_task(load => $workload);
    begin();
    if ($outstanding == 1) {
        for (1 .. $jobs) { defined $client->do_task(load => $workload) or die "a job failed" }
    }
    my $finished = 0;
    while ($outstanding > 1 && $jobs > 0) {
        my $together = $jobs < $outstanding ? $jobs : $outstanding;
        my $set = $client->new_task_set;
        # Jobs of the same function and unique are one; these have no unique.
        $set->add_task(load => $workload, { on_complete => sub { $finished++ } }) for 1 .. $together;
        $set->wait;
        $jobs -= $together;
    }
    end();
}

sub work {
    my $worker = Gearman::Worker->new(job_servers => ["127.0.0.1:$port"]);
    $worker->register_function(load => sub { $_[0]->arg });
    $worker->work while 1;
}

sub register {
    my ($count) = @_;
    begin();
    my $worker = Gearman::Worker->new(job_servers => ["127.0.0.1:$port"]);
    $worker->register_function($_ < $count ? "load-$_" : "load", sub { end(); "" }) for 1 .. $count;
    $worker->work while 1;
}

my %run = (
    version   => sub { print "Gearman::Client $Gearman::Client::VERSION on Perl ", $^V =~ s/^v//r, "\n" },
    client    => \&submit,
    worker    => \&work,
    functions => \&register,
);
$run{$mode}->(@numbers);
