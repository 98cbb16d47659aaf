# What PostgreSQL calls for each WAL file on a host with Perl: hands one file to `drkit serve`, by a socket.
#
#     archive_command = 'exec perl -C0 /path/to/wal_push.pl push %p --socket /path/to/socket'
#
# It is the push of wal_client.py, with the same words, protocol and exit statuses: 0 the file is durable in the
# stores, 1 refused, 2 not reached or not answered in time, 64 wrong usage. Perl starts in a fifth of Python's time,
# and PostgreSQL waits for that at every segment. Therefore no module is loaded either, and the numbers are Linux's:
# AF_UNIX and SOCK_STREAM are 1, O_PATH is 0x200000, ENOENT is 2 and ECONNREFUSED 111.

my %option = ('--socket' => '', '--timeout' => 60);
my @words;
while (@ARGV) {
    my $word = shift @ARGV;
    if (exists $option{$word} && @ARGV) {
        $option{$word} = shift @ARGV;
    }
    else {
        push @words, $word;
    }
}
my ($socket, $timeout_s) = @option{'--socket', '--timeout'};
if (@words != 2 || $words[0] ne 'push' || $socket eq '' || $timeout_s !~ /^[0-9]+(\.[0-9]+)?$/) {
    print STDERR "usage: wal_push.pl push PATH --socket SOCKET   [--timeout SECONDS]\n";
    exit 64;
}
my $path = $words[1];
my ($name) = $path =~ m{([^/]*)$};
not_taken('a name with a line break cannot be asked for') if $path =~ /\n/;
$path = readlink('/proc/self/cwd') . "/$path" if $path !~ m{^/};

$SIG{PIPE} = 'IGNORE';
$SIG{ALRM} = sub { not_taken("no answer in time from $socket") };
alarm(int($timeout_s) + 1);

connect_to($socket) or not_taken($! == 2 || $! == 111
    ? "nobody answers at $socket (is drkit serve running?)" : "$! ($socket)");
my $request = "push $path\n";
while ($request ne '') {
    my $sent = syswrite(LINE, $request);
    not_taken("$! ($socket)") if !defined $sent;
    substr($request, 0, $sent) = '';
}
my $answer = '';
while ($answer !~ /\n/) {
    my $received = sysread(LINE, $answer, 8192, length $answer);
    not_taken("$! ($socket)") if !defined $received;
    not_taken('the other side hung up without an answer') if !$received || length $answer > 8192;
}
exit 0 if $answer =~ /^ok/;
$answer =~ s/\n.*//s;
$answer =~ s/^no //;
complain("$name was refused: $answer", 1);

# Connect LINE; a path that is too long for the system's address is reached through its folder.
sub connect_to {
    my ($place) = @_;
    if (length $place > 100 && $place =~ m{^(.*)/([^/]*)$}s) {
        my ($folder, $last) = ($1, $2);
        sysopen(FOLDER, $folder, 0x200000) or return 0;    # who may only pass through may connect
        $place = '/proc/self/fd/' . fileno(FOLDER) . "/$last";
    }
    return socket(LINE, 1, 1, 0) && connect(LINE, pack('S a*', 1, "$place\0"));
}

sub not_taken {
    complain("$name was not taken: $_[0]", 2);
}

sub complain {
    my ($text, $status) = @_;
    print STDERR "drkit wal: $text\n";
    exit $status;
}
