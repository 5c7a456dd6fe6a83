/* What the load and the upstream share: the clock, timers, buffers that grow, the epoll set. */
#ifndef COMMON_H
#define COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define LENGTH(literal) (sizeof(literal) - 1)

typedef int64_t ns; /* of the monotonic clock, or of a span */

static inline ns clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static inline ns now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}

static inline void *checked(void *memory)
{
    if (!memory) die("memory");
    return memory;
}

/* ---- bytes that are added at the end and taken from the front ---- */

struct buffer {
    char *data;
    size_t from, to, room;
};

static inline char *buffer_start(const struct buffer *b) { return b->data + b->from; }
static inline size_t buffer_length(const struct buffer *b) { return b->to - b->from; }

/* Where `length` more bytes may be written; one byte beyond them is there for a NUL. */
static inline char *buffer_reserve(struct buffer *b, size_t length)
{
    if (b->from && b->to + length >= b->room) {
        memmove(b->data, b->data + b->from, buffer_length(b));
        b->to -= b->from;
        b->from = 0;
    }
    if (b->to + length >= b->room) {
        b->room = 2 * (b->to + length) + 256;
        b->data = checked(realloc(b->data, b->room));
    }
    return b->data + b->to;
}

static inline void buffer_add(struct buffer *b, const char *bytes, size_t length)
{
    memcpy(buffer_reserve(b, length), bytes, length);
    b->to += length;
}

static inline void buffer_take(struct buffer *b, size_t length)
{
    b->from += length;
    if (b->from == b->to) b->from = b->to = 0;
}

/* ---- timers: a binary heap, the earliest on top ---- */

struct timer {
    ns at;
    size_t place; /* in the heap, from 1; 0: not set */
    void (*due)(void *owner);
    void *owner;
};

struct timers {
    struct timer **heap; /* from 1 */
    size_t count, room;
};

static inline void timer_put(struct timers *all, struct timer *t, size_t place)
{
    all->heap[place] = t;
    t->place = place;
}

static inline void timer_settle(struct timers *all, struct timer *t, size_t place)
{
    while (place > 1 && all->heap[place / 2]->at > t->at) {
        timer_put(all, all->heap[place / 2], place);
        place /= 2;
    }
    for (;;) {
        size_t below = 2 * place;
        if (below < all->count && all->heap[below + 1]->at < all->heap[below]->at) below++;
        if (below > all->count || all->heap[below]->at >= t->at) break;
        timer_put(all, all->heap[below], place);
        place = below;
    }
    timer_put(all, t, place);
}

static inline void timer_clear(struct timers *all, struct timer *t)
{
    if (!t->place) return;
    size_t place = t->place;
    struct timer *last = all->heap[all->count--];
    t->place = 0;
    if (last != t) timer_settle(all, last, place);
}

static inline void timer_set(struct timers *all, struct timer *t, ns at)
{
    timer_clear(all, t);
    if (all->count + 2 > all->room) {
        all->room = 2 * all->room + 64;
        all->heap = checked(realloc(all->heap, all->room * sizeof *all->heap));
    }
    t->at = at;
    timer_settle(all, t, ++all->count);
}

/* Do what is due now, but not what becomes due meanwhile. */
static inline void timers_run(struct timers *all)
{
    ns now = now_ns();
    while (all->count && all->heap[1]->at <= now) {
        struct timer *t = all->heap[1];
        timer_clear(all, t);
        t->due(t->owner);
    }
}

/* ---- the epoll set, with a timer of its own, since epoll_wait counts in ms ---- */

struct poller {
    int set, timer;
    ns armed;
};

static inline void poller_watch(struct poller *p, int operation, int descriptor, uint32_t events, void *owner)
{
    struct epoll_event event = {.events = events, .data.ptr = owner};
    if (epoll_ctl(p->set, operation, descriptor, &event)) die("epoll_ctl");
}

static inline struct poller poller_open(void)
{
    struct poller p = {.set = epoll_create1(0), .timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)};
    if (p.set < 0 || p.timer < 0) die("epoll");
    prctl(PR_SET_TIMERSLACK, 1);
    poller_watch(&p, EPOLL_CTL_ADD, p.timer, EPOLLIN, NULL);
    return p;
}

/* Wait for events, at the latest until `until` (0: no such time). An event without an owner is the timer's. */
static inline int poller_wait(struct poller *p, struct epoll_event *events, int most, ns until)
{
    bool already = until && until <= now_ns();
    if (!already && until != p->armed) {
        struct itimerspec when = {.it_value = {.tv_sec = until / SECOND, .tv_nsec = until % SECOND}};
        if (timerfd_settime(p->timer, TFD_TIMER_ABSTIME, &when, NULL)) die("timerfd_settime");
        p->armed = until;
    }
    int count = epoll_wait(p->set, events, most, already ? 0 : -1);
    if (count < 0 && errno != EINTR) die("epoll_wait");
    return count < 0 ? 0 : count;
}

static inline struct sockaddr_in address_of(const char *host, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) die(host);
    return address;
}

static inline void set_option(int descriptor, int level, int option, int value)
{
    if (setsockopt(descriptor, level, option, &value, sizeof value)) die("setsockopt");
}

#endif
