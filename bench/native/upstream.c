/* The upstream of a bench run: what upstream.py does, without TLS and gzip.

   Open loop: an event is sent when it is due; what the socket does not take waits here with the times it was given.
   Events without an interval go out as fast as they are taken. One epoll set, one thread, until the process is ended. */
#include "common.h"
#include "talk.h"

#define MOST_HELD (8 << 20) /* bytes of one request */

struct connection {
    struct timer timer; /* of what is sent next */
    int descriptor;
    bool answering, waits_for_room;
    long events, place;
    ns interval;
    size_t looked; /* bytes of `in` in which the end of the head is not */
    struct buffer in, out;
};

static struct poller poller;
static struct timers timers;

static void connection_close(struct connection *c)
{
    timer_clear(&timers, &c->timer);
    close(c->descriptor);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

/* ---- what goes out ---- */

/* Send what waits in `out`; false: the connection is gone. */
static bool connection_send(struct connection *c)
{
    while (buffer_length(&c->out)) {
        ssize_t sent = send(c->descriptor, buffer_start(&c->out), buffer_length(&c->out), MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno != EAGAIN) {
            connection_close(c);
            return false;
        }
        if (sent < 0) break;
        buffer_take(&c->out, (size_t)sent);
    }
    bool waits = buffer_length(&c->out) > 0;
    if (waits != c->waits_for_room)
        poller_watch(&poller, EPOLL_CTL_MOD, c->descriptor, EPOLLIN | (waits ? EPOLLOUT : 0), c);
    c->waits_for_room = waits;
    return true;
}

static void add_chunk(struct buffer *out, const char *data, size_t length)
{
    char size[24];
    buffer_add(out, size, (size_t)snprintf(size, sizeof size, "%zx\r\n", length));
    buffer_add(out, data, length);
    buffer_add(out, "\r\n", 2);
}

static void add_delta(struct connection *c, ns due)
{
    char event[DELTA_LENGTH + 1];
    snprintf(event, sizeof event, "%s" STAMP_FORMAT "%s", DELTA_BEFORE, c->place++, (long long)now_ns(), (long long)due,
             DELTA_AFTER);
    add_chunk(&c->out, event, DELTA_LENGTH);
}

static void add_epilogue(struct connection *c)
{
    char text[LENGTH(EPILOGUE_BEFORE EPILOGUE_AFTER) + 24];
    int length = snprintf(text, sizeof text, "%s%ld%s", EPILOGUE_BEFORE, c->events, EPILOGUE_AFTER);
    add_chunk(&c->out, text, (size_t)length);
    buffer_add(&c->out, "0\r\n\r\n", 5);
}

static void connection_read(struct connection *c);

/* Send what is due, and plan the next; after the last delta, one interval later, the end. */
static void connection_due(void *owner)
{
    struct connection *c = owner;
    if (c->place == c->events) {
        add_epilogue(c);
        c->answering = false;
        if (connection_send(c) && buffer_length(&c->in)) connection_read(c);
    } else if (c->interval) {
        add_delta(c, c->timer.at);
        if (connection_send(c)) timer_set(&timers, &c->timer, c->timer.at + c->interval);
    } else {
        ns due = now_ns();
        for (int n = 0; n < FLOOD_EVENTS && c->place < c->events; n++) add_delta(c, due);
        if (connection_send(c) && !c->waits_for_room) timer_set(&timers, &c->timer, now_ns());
    }
}

static void add_plain(struct connection *c, long events)
{
    char head[LENGTH(PLAIN_HEAD_FORMAT) + 24], tail[LENGTH(PLAIN_BETWEEN PLAIN_AFTER) + 24];
    size_t tail_length = (size_t)snprintf(tail, sizeof tail, "%s%ld%s", PLAIN_BETWEEN, events, PLAIN_AFTER);
    size_t length = LENGTH(PLAIN_BEFORE) + LENGTH(WORD) * (size_t)events + tail_length;
    buffer_add(&c->out, head, (size_t)snprintf(head, sizeof head, PLAIN_HEAD_FORMAT, length));
    buffer_add(&c->out, PLAIN_BEFORE, LENGTH(PLAIN_BEFORE));
    for (long n = 0; n < events; n++) buffer_add(&c->out, WORD, LENGTH(WORD));
    buffer_add(&c->out, tail, tail_length);
}

/* ---- what comes in ---- */

static const char *find(const char *in, size_t length, const char *what)
{
    return memmem(in, length, what, strlen(what));
}

/* The value of a field of a head, whose name is in lower case with its colon; NULL: it is not there. */
static const char *field(const char *head, const char *end, const char *name)
{
    for (const char *line = head; line < end; line++) {
        line = find(line, (size_t)(end - line), "\r\n");
        if (!line) return NULL;
        const char *value = line + 2 + strlen(name);
        if (!strncasecmp(line + 2, name, strlen(name))) return value + strspn(value, " \t");
    }
    return NULL;
}

/* Join the chunks of a body where they lie. Returns what they take of `length`; 0: not whole yet, -1: malformed. */
static ssize_t join_chunks(char *body, size_t length, size_t *joined, bool write)
{
    size_t at = 0;
    *joined = 0;
    for (;;) {
        const char *line = find(body + at, length - at, "\r\n");
        if (!line) return 0;
        char *after;
        size_t size = strtoul(body + at, &after, 16);
        if (after == body + at || size > MOST_HELD) return -1;
        size_t begins = (size_t)(line - body) + 2;
        if (length < begins + size + 2) return 0;
        if (memcmp(body + begins + size, "\r\n", 2)) return -1;
        if (write) memmove(body + *joined, body + begins, size);
        *joined += size;
        at = begins + size + 2;
        if (!size) return (ssize_t)at;
    }
}

static void answer(struct connection *c, const char *head, const char *body, size_t length)
{
    const char *target = strchr(head, ' ');
    size_t target_length = target ? strcspn(++target, " ?\r") : 0;
    size_t wanted = LENGTH("/messages");
    if (target_length < wanted || memcmp(target + target_length - wanted, "/messages", wanted)) {
        fprintf(stderr, "not served: %.*s\n", (int)strcspn(head, "\r"), head);
        buffer_add(&c->out, NOT_FOUND, LENGTH(NOT_FOUND));
        if (memcmp(head, "HEAD ", 5)) buffer_add(&c->out, NOTHING_HERE, LENGTH(NOTHING_HERE));
        return;
    }
    const char *marker = find(body, length, "bench stream=");
    int stream = 0;
    long events = 0, interval_us = 0, phase_us = 0;
    if (!marker || sscanf(marker, "bench stream=%d events=%ld interval_us=%ld phase_us=%ld", &stream, &events,
                          &interval_us, &phase_us) != 4) {
        buffer_add(&c->out, UNKNOWN, LENGTH(UNKNOWN));
    } else if (stream) {
        ns due = now_ns();
        c->answering = true;
        c->events = events;
        c->place = 0;
        c->interval = interval_us * 1000;
        if (phase_us) due += ((phase_us * 1000 - due) % c->interval + c->interval) % c->interval;
        buffer_add(&c->out, STREAM_HEAD, LENGTH(STREAM_HEAD));
        add_chunk(&c->out, PROLOGUE, LENGTH(PROLOGUE));
        timer_set(&timers, &c->timer, due);
    } else {
        add_plain(c, events);
    }
}

/* Answer the request at the front of `in`, if it is whole. False: what is there is not a request. */
static bool take_request(struct connection *c, bool *taken)
{
    char *head = buffer_start(&c->in);
    size_t length = buffer_length(&c->in);
    size_t from = c->looked > 3 ? c->looked - 3 : 0;
    *taken = false;
    head[length] = 0;
    char *end = memmem(head + from, length - from, "\r\n\r\n", 4);
    if (!end) {
        c->looked = length;
        return length < MOST_HELD;
    }
    c->looked = (size_t)(end - head);
    char *body = end + 4;
    size_t there = length - (size_t)(body - head), used, size;
    const char *coding = field(head, end, "transfer-encoding:"), *given = field(head, end, "content-length:");
    if (coding && !strncasecmp(coding, "chunked", 7)) {
        ssize_t chunks = join_chunks(body, there, &size, false);
        if (chunks <= 0) return chunks == 0 && there < MOST_HELD;
        join_chunks(body, there, &size, true);
        used = (size_t)chunks;
    } else {
        size = used = given ? strtoul(given, NULL, 10) : 0;
        if (there < used) return used < MOST_HELD;
    }
    answer(c, head, body, size);
    c->looked = 0;
    buffer_take(&c->in, (size_t)(body - head) + used);
    *taken = true;
    return true;
}

static void connection_read(struct connection *c)
{
    for (bool taken = true; taken && !c->answering && buffer_length(&c->in);) {
        if (!take_request(c, &taken)) {
            connection_close(c);
            return;
        }
    }
    connection_send(c);
}

static void connection_ready(struct connection *c, uint32_t events)
{
    if (events & EPOLLOUT) {
        if (!connection_send(c)) return;
        if (!c->waits_for_room && c->answering && !c->timer.place) timer_set(&timers, &c->timer, now_ns()); /* a flood */
    }
    if (!(events & ~(uint32_t)EPOLLOUT)) return;
    static char piece[READ];
    ssize_t length = recv(c->descriptor, piece, sizeof piece, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length <= 0 || buffer_length(&c->in) > MOST_HELD) {
        connection_close(c);
        return;
    }
    buffer_add(&c->in, piece, (size_t)length);
    connection_read(c);
}

static void accept_all(int listener)
{
    int descriptor;
    while ((descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *c = checked(calloc(1, sizeof *c));
        c->descriptor = descriptor;
        c->timer.due = connection_due;
        c->timer.owner = c;
        set_option(descriptor, IPPROTO_TCP, TCP_NODELAY, 1);
        poller_watch(&poller, EPOLL_CTL_ADD, descriptor, EPOLLIN, c);
    }
}

int main(void)
{
    struct sockaddr_in address = address_of("127.0.0.1", 0);
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) || listen(listener, BACKLOG) ||
        getsockname(listener, (struct sockaddr *)&address, &size))
        die("listen");
    poller = poller_open();
    poller_watch(&poller, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    printf("upstream listening on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event ready[256];
        timers_run(&timers);
        int count = poller_wait(&poller, ready, 256, timers.count ? timers.heap[1]->at : 0);
        for (int n = 0; n < count; n++) {
            if (ready[n].data.ptr == &listener)
                accept_all(listener);
            else if (ready[n].data.ptr)
                connection_ready(ready[n].data.ptr, ready[n].events);
        }
    }
}
