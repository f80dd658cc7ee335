# Worker in Perl: reverses what it is given.
# perl worker.pl SERVER
use strict;
use warnings;
use Gearman::Worker;

my $worker = Gearman::Worker->new(job_servers => [$ARGV[0]]);
$worker->register_function(reverse => sub { scalar reverse $_[0]->arg });
$worker->work while 1;
