# A worker on Perl's Gearman::Worker; runs until it is killed, or until it has done as many jobs as it is told.
# perl worker.pl PORT [JOBS]
use strict;
use warnings;
use Gearman::Worker;

$| = 1;
my ($port, $jobs) = @ARGV;
my $worker = Gearman::Worker->new(job_servers => ["127.0.0.1:$port"]);
my $done = 0;
$worker->register_function(reverse => sub { scalar reverse $_[0]->arg });
$worker->register_function(
    chatty => sub {
        my ($job) = @_;
        $job->set_status(1, 4);
        $worker->send_work_data($job, 'part');
        $worker->send_work_warning($job, 'careful');
        $job->set_status(4, 4);
        return 'done';
    }
);
$worker->register_function(throws => sub { die "out of paper\n" });
$worker->register_function(fails => sub { return undef });
$worker->register_function(later => sub { print $_[0]->arg, "\n"; return '' });
# Within a second, and not before a line is written to its standard input.
$worker->register_function('slow', 1, sub { chomp(my $line = <STDIN>); return $line });
print "ready\n";
$worker->work(on_complete => sub { $done++ }, stop_if => sub { defined $jobs && $done >= $jobs });
