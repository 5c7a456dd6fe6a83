/* The load of a bench run: what load.py does, without gzip. `python -m bench.native` starts it, with NAME=VALUE for each
   of the names in `plan`, and the request in a file that is already open.

   Open loop, except where the next request waits for the answer: times count from when something was due. What goes
   wrong with an exchange is counted, and the others go on. */
#include "answer.h"
#include "common.h"
#include "tally.h"
#include "talk.h"

enum shape { HELD, PACED, CLOSED };

/* Times in ns. `request`: a descriptor; the marker belongs behind its first `before` bytes. */
static long long port, shape, connections, stream, interval_us, events_each, period, fresh, slow_each, stall, exact,
    opening, settle, measured_for, slack, request, before;

static const struct {
    const char *name;
    long long *value;
} plan[] = {
    {"port", &port}, {"shape", &shape}, {"connections", &connections}, {"stream", &stream}, {"interval_us", &interval_us},
    {"events", &events_each}, {"period", &period}, {"fresh", &fresh}, {"slow_each", &slow_each}, {"stall", &stall},
    {"exact", &exact}, {"opening", &opening}, {"settle", &settle}, {"seconds", &measured_for}, {"slack", &slack},
    {"request", &request}, {"before", &before},
};

struct caller {
    struct timer timer; /* of the next request, or of the end of a stall */
    long number;
    int descriptor; /* -1: no connection */
    bool slow, running, begun, seen;
    ns due, now; /* when the request was to be sent; when the last read was made */
    struct buffer out;
    struct answer answer;
};

static struct sockaddr_in address;
static struct poller poller;
static struct timers timers;
static struct tally tally;
static struct buffer request_text;
static long running;
static bool measuring;
static ns until, cpu_at_start;

static void ask(void *owner);

static void hang_up(struct caller *c)
{
    timer_clear(&timers, &c->timer);
    if (c->descriptor >= 0) close(c->descriptor);
    c->descriptor = -1;
}

static void fail(struct caller *c, const char *why, const char *error)
{
    char text[500];
    snprintf(text, sizeof text, error ? "%s: %s" : "%s", why, error);
    failed(&tally, text, 1);
    tally.dropped++;
    running--;
    c->running = false;
    hang_up(c);
}

static void listen_to(struct caller *c, uint32_t events)
{
    poller_watch(&poller, EPOLL_CTL_MOD, c->descriptor, events, c);
}

/* ---- what goes out ---- */

static void send_request(struct caller *c)
{
    ssize_t sent = send(c->descriptor, buffer_start(&c->out), buffer_length(&c->out), MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        fail(c, "asking", strerror(errno));
        return;
    }
    if (sent > 0) buffer_take(&c->out, (size_t)sent);
    listen_to(c, EPOLLIN | (buffer_length(&c->out) ? EPOLLOUT : 0));
}

static void open_connection(struct caller *c)
{
    c->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->descriptor < 0) die("socket");
    set_option(c->descriptor, IPPROTO_TCP, TCP_NODELAY, 1);
    if (c->slow) {
        set_option(c->descriptor, SOL_SOCKET, SO_RCVBUF, SLOW_WINDOW);
        set_option(c->descriptor, IPPROTO_TCP, TCP_MAXSEG, SLOW_SEGMENT);
    }
    /* What becomes of it, the first send tells. */
    if (connect(c->descriptor, (struct sockaddr *)&address, sizeof address)) errno = 0;
    poller_watch(&poller, EPOLL_CTL_ADD, c->descriptor, EPOLLIN, c);
}

/* Where in its interval a stream stands: as timing.py has it. */
static long phase_us(long number, long long interval)
{
    uint64_t mixed = ((uint64_t)number + 1) * 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    return (long)((mixed ^ (mixed >> 31)) % (uint64_t)interval) + 1;
}

/* Send a request that is due, over the caller's connection or a new one. */
static void ask(void *owner)
{
    struct caller *c = owner;
    long count = events_each, phase = 0;
    char marker[200];
    c->due = c->timer.at;
    if (shape == HELD) {
        phase = phase_us(c->number, interval_us);
        ns left = until - now_ns();
        count = (left > 0 ? left : 0) / (interval_us * 1000) + 1;
    }
    tally.exchanges++;
    tally.asked += count;
    running++;
    c->running = true;
    c->begun = c->seen = false;
    answer_begin(&c->answer, stream, count, exact);
    snprintf(marker, sizeof marker, MARKER_FORMAT, (int)stream, (int)count, (int)interval_us, (int)phase);
    buffer_take(&c->out, buffer_length(&c->out));
    buffer_add(&c->out, buffer_start(&request_text), (size_t)before);
    buffer_add(&c->out, marker, strlen(marker));
    buffer_add(&c->out, buffer_start(&request_text) + before, buffer_length(&request_text) - (size_t)before);
    if (c->descriptor < 0) open_connection(c);
    send_request(c);
}

static void ask_at(struct caller *c, ns due)
{
    c->timer.due = ask;
    timer_set(&timers, &c->timer, due);
}

/* ---- what comes in ---- */

static void stamp(void *owner, ns sent, ns due)
{
    struct caller *c = owner;
    if (!c->seen && shape != HELD && measuring) sample(&tally, FIRST_EVENT, c->now - c->due);
    c->seen = true;
    if (!measuring) return;
    tally.events++;
    if (c->slow || !interval_us) return;
    sample(&tally, EVENT, c->now - sent);
    sample(&tally, LAG, sent - due);
}

static void go_on(void *owner) { listen_to(owner, EPOLLIN); }

/* Read nothing for a while. */
static void stall_reading(struct caller *c)
{
    ns now = now_ns();
    if (now >= until) return;
    listen_to(c, 0);
    c->timer.due = go_on;
    timer_set(&timers, &c->timer, now + stall < until ? now + stall : until);
}

/* An answer is whole: what comes next on this connection? */
static void ended(struct caller *c)
{
    running--;
    c->running = false;
    if (shape != HELD && measuring) {
        tally.answers++;
        sample(&tally, ANSWER, c->now - c->due);
    }
    ns due = shape == PACED ? c->due + period : c->now;
    bool last = shape == HELD || due >= until;
    if (last || fresh) hang_up(c);
    if (!last) ask_at(c, due);
}

static void caller_ready(struct caller *c, uint32_t events)
{
    static char data[READ];
    if (events & EPOLLOUT && buffer_length(&c->out)) {
        send_request(c);
        return;
    }
    ssize_t length = recv(c->descriptor, data, c->slow && now_ns() < until ? SLOW_READ : sizeof data, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    c->now = now_ns();
    if (!c->running) { /* the other side has closed a connection that was not used */
        close(c->descriptor);
        c->descriptor = -1;
        return;
    }
    if (length <= 0) {
        fail(c, length ? "reading" : "the answer broke off", length ? strerror(errno) : NULL);
        return;
    }
    if (measuring) {
        tally.reads++;
        tally.bytes += length;
    }
    if (!c->begun && (shape == HELD || measuring)) sample(&tally, shape == HELD ? OPEN : FIRST_BYTE, c->now - c->due);
    c->begun = true;
    const char *wrong = answer_feed(&c->answer, data, (size_t)length, stamp, c);
    if (wrong)
        fail(c, wrong, NULL);
    else if (c->answer.part == ENDED)
        ended(c);
    else if (c->slow)
        stall_reading(c);
}

/* ---- the run ---- */

static void measure(void *owner)
{
    struct caller *callers = owner;
    long opened = 0;
    for (long n = 0; n < connections; n++) opened += callers[n].answer.status == 200;
    if (shape == HELD && opened < connections) failed(&tally, "not open in time", connections - opened);
    printf("measuring\n");
    fflush(stdout);
    measuring = true;
    cpu_at_start = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    tally.seconds = -(double)now_ns() / SECOND;
}

static void measured(void *owner)
{
    (void)owner;
    measuring = false;
    tally.cpu_seconds = (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_at_start) / SECOND;
    tally.seconds += (double)now_ns() / SECOND;
    printf("measured\n");
    fflush(stdout);
}

static void read_plan(int count, char **arguments)
{
    const char *host = "";
    for (int n = 1; n < count; n++) {
        char *value = strchr(arguments[n], '=');
        if (!value) die(arguments[n]);
        *value++ = 0;
        if (!strcmp(arguments[n], "host")) host = value;
        for (size_t k = 0; k < sizeof plan / sizeof *plan; k++)
            if (!strcmp(arguments[n], plan[k].name)) *plan[k].value = atoll(value);
    }
    address = address_of(host, (int)port);
    ssize_t got;
    while ((got = read((int)request, buffer_reserve(&request_text, 65536), 65536)) > 0) request_text.to += (size_t)got;
    if (got < 0 || (long long)buffer_length(&request_text) < before) die("request");
}

int main(int argument_count, char **arguments)
{
    read_plan(argument_count, arguments);
    poller = poller_open();
    struct caller *callers = checked(calloc((size_t)connections, sizeof *callers));
    ns start = now_ns(), from = start + opening + settle;
    until = from + measured_for;
    ns deadline = until + slack;
    for (long n = 0; n < connections; n++) {
        callers[n].number = n;
        callers[n].descriptor = -1;
        callers[n].slow = slow_each && n % slow_each == 0;
        callers[n].timer.owner = &callers[n];
        ask_at(&callers[n], start + opening / connections * n);
    }
    struct timer begin = {.due = measure, .owner = callers}, end = {.due = measured};
    timer_set(&timers, &begin, from);
    timer_set(&timers, &end, until);
    while ((timers.count || running) && now_ns() < deadline) {
        struct epoll_event ready[256];
        int count = poller_wait(&poller, ready, 256, timers.count ? timers.heap[1]->at : deadline);
        for (int n = 0; n < count; n++)
            if (ready[n].data.ptr) caller_ready(ready[n].data.ptr, ready[n].events);
        timers_run(&timers);
    }
    tally.dropped += running;
    if (running) failed(&tally, "not ended in time", running);
    print_tally(&tally);
    return 0;
}
