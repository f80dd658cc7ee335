/* Plays the clients and workers of a Gearman job server, all in one loop, and prints figures as a line of JSON.
 *
 *   load foreground   clients submit jobs and wait for results, workers send back what they get
 *   load background   clients submit background jobs; when all are acknowledged, workers work them off
 *   load submit       only the first half of that
 *   load drain        only the second half, of as many jobs as --jobs says
 *
 * The options stand in `options` below. Exit status: 0 if all jobs came back as they were sent, else 1; 2 for
 * a command line that makes no sense. It is as plain as it can be, so that the server is what is measured: the
 * figure load_cpu_share says how much of one core it took itself.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* The packets that are spoken here, by their numbers in the protocol. */
enum packet {
    CAN_DO = 1, PRE_SLEEP = 4, NOOP = 6, SUBMIT_JOB = 7, JOB_CREATED = 8, GRAB_JOB = 9, NO_JOB = 10,
    JOB_ASSIGN = 11, WORK_COMPLETE = 13, ECHO_REQ = 16, ECHO_RES = 17, SUBMIT_JOB_BG = 18, ERROR = 19
};

#define HEADER 12
#define READ_BYTES (256 * 1024)
#define STAMP 8 /* the first bytes of a workload: when it was submitted, or was due to be */
#define SECOND 1000000000ull
#define FUNCTION "load"

/* Bytes that were read and not used, or are to be sent: those from `first` up to `past`. */
struct bytes { char *data; size_t first, past, size; };

enum part { CLIENT, WORKER, SLEEPER };
struct peer {
    int socket;
    enum part part;
    struct bytes in, out;
    bool waits_to_write;
    long open_jobs;
};

/* What the command line says. */
static long port, server, clients = 4, workers = 4, sleepers, depth = 8, jobs = 10000, size = 32;
static long seconds, rate, patience = 120, uniques;
static const struct { const char *name; long *value; const char *meaning; } options[] = {
    { "port", &port, "where the server listens, on 127.0.0.1" },
    { "server", &server, "its process, whose CPU time and memory are measured" },
    { "clients", &clients, "connections that submit" },
    { "workers", &workers, "connections that work" },
    { "sleepers", &sleepers, "workers more that have fallen asleep, and find no job when they are woken" },
    { "depth", &depth, "jobs that each client has open at a time" },
    { "jobs", &jobs, "how many in all; with --seconds, at most" },
    { "bytes", &size, "of each workload" },
    { "seconds", &seconds, "stop submitting after so many" },
    { "rate", &rate, "submit so many a second whatever is open, and count from when each was due" },
    { "uniques", &uniques, "1: give each job a unique of its own" },
    { "patience", &patience, "seconds in which each phase has to end" },
};
enum { OPTIONS = sizeof options / sizeof *options };

static bool is_background;
static int poller, ticker = -1;
static struct peer *peers, *first_client;
static long peer_count, echoes, submitted, acknowledged, refused, finished, next_client;
static uint64_t phase_start, submit_until = UINT64_MAX;
static uint64_t *latencies;
static char *workload;

static void give_up(int status, const char *format, ...) {
    va_list words;
    va_start(words, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, words);
    fputc('\n', stderr);
    exit(status);
}

static void *checked(void *memory) {
    if (!memory) give_up(1, "out of memory");
    return memory;
}

/* Time and figures of processes. */

static uint64_t read_clock(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) return 0;
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static uint64_t now(void) { return read_clock(CLOCK_MONOTONIC); }

static double server_cpu_us(void) {
    clockid_t clock;
    if (!server || clock_getcpuclockid((pid_t)server, &clock)) return 0;
    return (double)read_clock(clock) / 1e3;
}

static double server_rss_mib(void) {
    char path[64], line[256];
    double kib = 0;
    snprintf(path, sizeof path, "/proc/%ld/status", server);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmRSS: %lf", &kib) == 1) break;
    if (status) fclose(status);
    return kib / 1024;
}

/* Bytes. */

static char *room_for(struct bytes *b, size_t more) {
    if (b->first == b->past) b->first = b->past = 0;
    if (b->past + more > b->size) {
        size_t kept = b->past - b->first;
        if (kept + more > b->size) {
            while (kept + more > b->size) b->size = b->size ? 2 * b->size : READ_BYTES;
            char *larger = checked(malloc(b->size));
            if (kept) memcpy(larger, b->data + b->first, kept);
            free(b->data);
            b->data = larger;
        } else {
            memmove(b->data, b->data + b->first, kept);
        }
        b->first = 0;
        b->past = kept;
    }
    return b->data + b->past;
}

static void append(struct bytes *b, const void *data, size_t length) {
    memcpy(room_for(b, length), data, length);
    b->past += length;
}

static void append_header(struct bytes *b, enum packet type, size_t length) {
    uint32_t header[3] = { 0, htonl(type), htonl((uint32_t)length) };
    memcpy(header, "\0REQ", 4);
    append(b, header, HEADER);
}

/* Connections. */

static void watch(struct peer *p, int how) {
    struct epoll_event event = { .events = EPOLLIN | (p->waits_to_write ? EPOLLOUT : 0), .data.ptr = p };
    if (epoll_ctl(poller, how, p->socket, &event)) give_up(1, "epoll_ctl: %s", strerror(errno));
}

static void send_out(struct peer *p) {
    struct bytes *out = &p->out;
    while (out->first < out->past) {
        ssize_t sent = send(p->socket, out->data + out->first, out->past - out->first,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (errno == EAGAIN) break;
            give_up(1, "the server closed a connection: %s", strerror(errno));
        }
        out->first += (size_t)sent;
    }
    if (p->waits_to_write != (out->first < out->past)) {
        p->waits_to_write = !p->waits_to_write;
        watch(p, EPOLL_CTL_MOD);
    }
}

static struct peer *open_peer(enum part part) {
    struct peer *p = peers + peer_count++;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    p->part = part;
    p->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (p->socket < 0 || connect(p->socket, (struct sockaddr *)&address, sizeof address))
        give_up(1, "no connection to port %ld: %s", port, strerror(errno));
    setsockopt(p->socket, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
    watch(p, EPOLL_CTL_ADD);
    if (part != CLIENT) {
        append_header(&p->out, CAN_DO, strlen(FUNCTION));
        append(&p->out, FUNCTION, strlen(FUNCTION));
        append_header(&p->out, part == WORKER ? GRAB_JOB : PRE_SLEEP, 0);
    }
    return p;
}

/* What clients do. */

static bool may_submit(void) { return submitted < jobs && now() < submit_until; }

static void submit(struct peer *p, uint64_t stamp) {
    char names[64];
    size_t length = (size_t)sprintf(names, FUNCTION) + 1;
    if (uniques) length += (size_t)sprintf(names + length, "%ld", submitted);
    names[length++] = 0;
    memcpy(workload, &stamp, STAMP);
    append_header(&p->out, is_background ? SUBMIT_JOB_BG : SUBMIT_JOB, length + (size_t)size);
    append(&p->out, names, length);
    append(&p->out, workload, (size_t)size);
    submitted++;
    p->open_jobs++;
}

static void keep_busy(struct peer *p) {
    while (!rate && p->open_jobs < depth && may_submit()) submit(p, now());
}

static void submit_what_is_due(void) {
    uint64_t ticks = 0;
    if (read(ticker, &ticks, sizeof ticks) < 0) return;
    uint64_t due = (now() - phase_start) * (uint64_t)rate / SECOND;
    while ((uint64_t)submitted < due && may_submit()) {
        struct peer *p = first_client + next_client++ % clients;
        submit(p, phase_start + (uint64_t)(submitted + 1) * SECOND / (uint64_t)rate);
        send_out(p);
    }
}

/* What comes from the server. */

static void job_came_back(const char *data, size_t length) {
    uint64_t stamp;
    if (length != (size_t)size) give_up(1, "a workload of %ld bytes came back with %zu", size, length);
    if (finished >= jobs) give_up(1, "more jobs came back than were submitted");
    memcpy(&stamp, data, STAMP);
    latencies[finished++] = now() - stamp;
}

static const char *behind(const char *data, size_t length) {
    const char *nul = memchr(data, 0, length);
    if (!nul) give_up(1, "the server sent a packet without all of its arguments");
    return nul + 1;
}

static void take(struct peer *p, uint32_t type, const char *data, size_t length) {
    const char *end = data + length, *name, *rest;
    switch (type) {
    case ECHO_RES:
        echoes++;
        break;
    case JOB_CREATED:
        acknowledged++;
        if (is_background) p->open_jobs--;
        break;
    case ERROR:
        if (!is_background || p->part != CLIENT) give_up(1, "the server sent an error: %.*s", (int)length, data);
        refused++;
        p->open_jobs--;
        break;
    case WORK_COMPLETE:
        rest = behind(data, length);
        job_came_back(rest, (size_t)(end - rest));
        p->open_jobs--;
        break;
    case JOB_ASSIGN:
        name = behind(data, length);
        rest = behind(name, (size_t)(end - name));
        append_header(&p->out, WORK_COMPLETE, (size_t)(name - data) + (size_t)(end - rest));
        append(&p->out, data, (size_t)(name - data));
        append(&p->out, rest, (size_t)(end - rest));
        append_header(&p->out, GRAB_JOB, 0);
        if (is_background) job_came_back(rest, (size_t)(end - rest));
        break;
    case NO_JOB:
        append_header(&p->out, PRE_SLEEP, 0);
        break;
    case NOOP:
        append_header(&p->out, GRAB_JOB, 0);
        break;
    default:
        give_up(1, "the server sent a packet of type %u: %.*s", type, (int)length, data);
    }
}

static void read_in(struct peer *p) {
    struct bytes *in = &p->in;
    ssize_t got;
    do {
        got = recv(p->socket, room_for(in, READ_BYTES), READ_BYTES, MSG_DONTWAIT);
        if (got == 0) give_up(1, "the server closed a connection");
        if (got < 0 && errno != EAGAIN) give_up(1, "recv: %s", strerror(errno));
        if (got > 0) in->past += (size_t)got;
    } while (got == READ_BYTES && in->past - in->first < 16 * READ_BYTES);
    while (in->past - in->first >= HEADER) {
        uint32_t header[3];
        memcpy(header, in->data + in->first, HEADER);
        size_t length = ntohl(header[2]);
        if (in->past - in->first - HEADER < length) break;
        take(p, ntohl(header[1]), in->data + in->first + HEADER, length);
        in->first += HEADER + length;
    }
    if (p->part == CLIENT) keep_busy(p);
    send_out(p);
}

/* Phases. */

static void run_until(bool (*is_over)(void), const char *what) {
    struct epoll_event events[128];
    while (!is_over()) {
        int count = epoll_wait(poller, events, 128, 100);
        for (int i = 0; i < count; i++) {
            struct peer *p = events[i].data.ptr;
            if (!p) {
                submit_what_is_due();
                continue;
            }
            if (events[i].events & EPOLLOUT) send_out(p);
            if (events[i].events & ~(uint32_t)EPOLLOUT) read_in(p);
        }
        if (now() - phase_start > (uint64_t)patience * SECOND)
            give_up(1, "%s took more than %ld s: %ld submitted, %ld acknowledged, %ld finished", what, patience,
                    submitted, acknowledged, finished);
    }
}

static bool all_echoed(void) { return echoes == peer_count; }

/* Waits until the server has taken all that was sent to it. */
static void settle(void) {
    echoes = 0;
    phase_start = now();
    for (long i = 0; i < peer_count; i++) {
        append_header(&peers[i].out, ECHO_REQ, 0);
        send_out(peers + i);
    }
    run_until(all_echoed, "answering ECHO_REQ");
}

static void open_workers(void) {
    for (long i = 0; i < workers + sleepers; i++) send_out(open_peer(i < workers ? WORKER : SLEEPER));
}

static void open_clients(void) {
    first_client = peers + peer_count;
    for (long i = 0; i < clients; i++) open_peer(CLIENT);
}

static void begin_to_submit(void) {
    phase_start = now();
    if (seconds) submit_until = phase_start + (uint64_t)seconds * SECOND;
    if (!rate) {
        for (long i = 0; i < clients; i++) {
            keep_busy(first_client + i);
            send_out(first_client + i);
        }
        return;
    }
    struct itimerspec each = { .it_interval.tv_nsec = 1000000, .it_value.tv_nsec = 1000000 };
    ticker = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };
    if (ticker < 0 || timerfd_settime(ticker, 0, &each, NULL) || epoll_ctl(poller, EPOLL_CTL_ADD, ticker, &event))
        give_up(1, "timer: %s", strerror(errno));
}

static bool all_came_back(void) { return finished == submitted && !may_submit(); }
static bool all_acknowledged(void) { return acknowledged + refused == submitted && !may_submit(); }
static bool all_finished(void) { return finished == jobs; }

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double latency_us(double share) {
    return finished ? (double)latencies[(size_t)(share * (double)(finished - 1))] / 1e3 : 0;
}

static void do_foreground(void) {
    open_workers();
    open_clients();
    settle();
    double cpu = server_cpu_us();
    begin_to_submit();
    run_until(all_came_back, "the jobs");
    double took = (double)(now() - phase_start) / SECOND;
    cpu = server_cpu_us() - cpu;
    qsort(latencies, (size_t)finished, sizeof *latencies, by_value);
    printf("\"jobs\": %ld, \"jobs_per_s\": %.1f, \"mib_per_s\": %.2f, \"cpu_us_per_job\": %.3f, \"p50_us\": %.1f, "
           "\"p99_us\": %.1f, \"max_us\": %.1f, \"rss_mib\": %.2f, ",
           finished, (double)finished / took, (double)finished * (double)size / took / 1048576,
           cpu / (double)finished, latency_us(.5), latency_us(.99), latency_us(1), server_rss_mib());
}

static void do_submit(void) {
    open_clients();
    settle();
    double cpu = server_cpu_us(), rss = server_rss_mib();
    begin_to_submit();
    run_until(all_acknowledged, "submitting");
    double took = (double)(now() - phase_start) / SECOND, count = (double)acknowledged;
    printf("\"jobs\": %ld, \"refused\": %ld, \"submits_per_s\": %.1f, \"submit_cpu_us_per_job\": %.3f, \"queued_rss_mib\": %.2f, "
           "\"bytes_per_queued_job\": %.1f, ",
           acknowledged, refused, count / took, (server_cpu_us() - cpu) / count, server_rss_mib(),
           (server_rss_mib() - rss) * 1048576 / count);
    jobs = acknowledged;
}

static void do_drain(void) {
    double cpu = server_cpu_us();
    uint64_t start = phase_start = now();
    open_workers();
    run_until(all_finished, "draining");
    settle();
    double took = (double)(now() - start) / SECOND;
    printf("\"drains_per_s\": %.1f, \"drain_cpu_us_per_job\": %.3f, \"drained_rss_mib\": %.2f, ",
           (double)finished / took, (server_cpu_us() - cpu) / (double)finished, server_rss_mib());
}

static void read_options(int count, char **words) {
    struct option known[OPTIONS + 1] = { 0 };
    for (int i = 0; i < OPTIONS; i++)
        known[i] = (struct option){ options[i].name, required_argument, NULL, i };
    for (int which; (which = getopt_long(count, words, "", known, NULL)) != -1;) {
        char *end = NULL;
        if (which == '?') exit(2);
        *options[which].value = strtol(optarg, &end, 10);
        if (end == optarg || *end || *options[which].value < 0)
            give_up(2, "--%s needs a number, not %s", options[which].name, optarg);
    }
    if (optind != count) give_up(2, "%s is not an option", words[optind]);
    if (!port) give_up(2, "--port is needed");
    if (size < STAMP) size = STAMP;
}

static int usage(void) {
    fputs("usage: load foreground|background|submit|drain OPTIONS, each option with a number:\n", stderr);
    for (int i = 0; i < OPTIONS; i++) fprintf(stderr, "  --%-10s %s\n", options[i].name, options[i].meaning);
    return 2;
}

int main(int count, char **words) {
    const char *mode = count > 1 ? words[1] : "";
    bool is_foreground = !strcmp(mode, "foreground"), is_both = !strcmp(mode, "background");
    bool submits = is_both || !strcmp(mode, "submit"), drains = is_both || !strcmp(mode, "drain");
    if (!is_foreground && !submits && !drains) return usage();
    read_options(count - 1, words + 1);

    is_background = !is_foreground;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    poller = epoll_create1(EPOLL_CLOEXEC);
    peers = checked(calloc((size_t)(clients + workers + sleepers) + 1, sizeof *peers));
    latencies = checked(calloc((size_t)jobs + 1, sizeof *latencies));
    workload = checked(calloc(1, (size_t)size));

    uint64_t start = now();
    printf("{\"mode\": \"%s\", ", mode);
    if (is_foreground) do_foreground();
    if (submits) do_submit();
    if (drains) do_drain();
    printf("\"load_cpu_share\": %.3f}\n",
           (double)read_clock(CLOCK_PROCESS_CPUTIME_ID) / (double)(now() - start));
    return 0;
}
