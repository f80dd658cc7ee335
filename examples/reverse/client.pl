# Client in Perl: has a text reversed, and waits for the result.
# perl client.pl SERVER TEXT
use strict;
use warnings;
use Gearman::Client;

my ($server, $text) = @ARGV;
my $client = Gearman::Client->new(job_servers => [$server]);
my $result = $client->do_task('reverse', $text) or die "no result\n";
print "$$result\n";
