# What a client on Perl's Gearman::Client does with a server; prints one line for each thing that it saw.
# perl client.pl PORT CASE [WORKLOAD BYTES]
use strict;
use warnings;
use Gearman::Client;
use Gearman::Task;
use Storable;

$| = 1;
my ($port, $case, $bytes) = @ARGV;
my $client = Gearman::Client->new(job_servers => ["127.0.0.1:$port"], exceptions => 1);

# Perl's worker freezes what it died of, others send plain text.
sub plain { return eval { ${ Storable::thaw($_[0]) } } // $_[0] }

sub say_line { print join(' ', @_), "\n" }

if ($case eq 'foreground') {
    say_line(${ $client->do_task('reverse', 'Hello', { uniq => 'my-unique', priority => $_ }) })
        for qw(normal high low);
}
elsif ($case eq 'progress') {
    my $result = $client->do_task(
        'chatty', 'work',
        {
            on_status => sub { say_line('status', @_) },
            on_data => sub { say_line('data', ${ $_[0] }) },
            on_warning => sub { say_line('warning', ${ $_[0] }) },
        }
    );
    say_line('complete', $$result);
}
elsif ($case eq 'exception') {
    $client->do_task(
        'throws', 'work',
        { on_exception => sub { say_line('exception', plain($_[0])) }, on_fail => sub { say_line('fail') } }
    );
}
elsif ($case eq 'tasks') {
    my $set = $client->new_task_set;
    for my $number (0 .. 49) {
        $set->add_task(
            'reverse', "task-$number",
            {
                uniq => "unique-$number",
                priority => (qw(normal high low))[$number % 3],
                on_complete => sub { say_line("unique-$number", ${ $_[0] }) },
            }
        );
    }
    $set->wait(timeout => 20);
}
elsif ($case eq 'same') {
    # Three submissions of one unique are one job, and three endings.
    my $set = $client->new_task_set;
    $set->add_task('reverse', 'same', { uniq => '-', on_complete => sub { say_line(${ $_[0] }) } }) for 1 .. 3;
    $set->wait(timeout => 20);
}
elsif ($case eq 'background') {
    for my $priority (qw(normal high low)) {
        my $handle = $client->dispatch_background('later', $priority, { uniq => "my $priority", priority => $priority });
        my $status = $client->get_status($handle);
        say_line($priority, $status->known ? 'known' : 'unknown', $status->running ? 'running' : 'queued');
    }
    my $nobody = $client->get_status("127.0.0.1:$port//H:nobody:1");
    say_line('nobody', $nobody->known ? 'known' : 'unknown', $nobody->running ? 'running' : 'queued');
}
elsif ($case eq 'large') {
    my $workload = "\0binary\n" x ($bytes / 8);
    my $result = $client->do_task('reverse', $workload);
    say_line($$result eq reverse($workload) ? 'equal' : 'different');
}
