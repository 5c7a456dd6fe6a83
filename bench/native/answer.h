/* One answer, read as it arrives: HTTP/1.1 as http1.py reads it, and every byte of it compared as talk.py does. */
#ifndef ANSWER_H
#define ANSWER_H

#include "common.h"
#include "talk.h"

#define MOST_HEAD 16384

enum part { HEAD, CHUNK_SIZE, CHUNK, CHUNK_END, PLAIN, ENDED };

struct answer {
    enum part part;
    int status; /* 0 until the head is there */
    size_t left; /* of the chunk, or of the plain body */
    bool last;   /* this is the chunk of size 0 */
    size_t line_length;
    char line[MOST_HEAD + 1]; /* the head, or the line of a chunk's size */

    bool stream, exact;
    long events;
    long place; /* of the delta that comes next; -1: the prologue, `events`: the epilogue, above: nothing */
    size_t at;  /* in that part */
    char delta[DELTA_LENGTH];
    struct buffer loose; /* a plain body that may have been written anew */
};

/* What is told of each delta that is complete: its two times. */
typedef void stamped(void *owner, ns sent, ns due);

static char answer_fault[400];

static inline const char *fault(const char *what, const char *bytes, size_t length)
{
    snprintf(answer_fault, sizeof answer_fault, "%s: %.*s", what, (int)(length < 300 ? length : 300), bytes);
    return answer_fault;
}

static inline const char *differs(struct answer *a, const char *bytes, size_t length)
{
    char what[100];
    snprintf(what, sizeof what, "Mismatch: at event %ld of %ld", a->place, a->events);
    return fault(what, bytes, length);
}

static inline void answer_begin(struct answer *a, bool stream, long events, bool exact)
{
    a->part = HEAD;
    a->status = 0;
    a->line_length = 0;
    a->stream = stream;
    a->exact = exact || stream;
    a->events = events;
    a->place = stream ? -1 : events;
    a->at = 0;
    buffer_take(&a->loose, buffer_length(&a->loose));
}

/* A number of 19 digits; -1: it is none. */
static inline ns digits19(const char *at)
{
    ns value = 0;
    for (int n = 0; n < 19; n++) {
        if (at[n] < '0' || at[n] > '9') return -1;
        value = value * 10 + (at[n] - '0');
    }
    return value;
}

static inline const char *delta_whole(struct answer *a, stamped *stamp, void *owner)
{
    const char *times = a->delta + LENGTH(DELTA_BEFORE) + 9;
    ns sent = digits19(times), due = digits19(times + 20);
    char expected[DELTA_LENGTH + 1];
    if (sent < 0 || due < 0) return differs(a, a->delta, DELTA_LENGTH);
    snprintf(expected, sizeof expected, "%s" STAMP_FORMAT "%s", DELTA_BEFORE, a->place, (long long)sent, (long long)due,
             DELTA_AFTER);
    if (memcmp(a->delta, expected, DELTA_LENGTH)) return differs(a, a->delta, DELTA_LENGTH);
    a->place++;
    stamp(owner, sent, due);
    return NULL;
}

/* The text of the last part, and with it all of a plain answer. It is written once, unless `events` changes. */
static inline const struct buffer *ending(const struct answer *a)
{
    static struct buffer text;
    static long events = -1;
    static bool stream;
    if (events == a->events && stream == a->stream) return &text;
    events = a->events;
    stream = a->stream;
    buffer_take(&text, buffer_length(&text));
    if (!stream) {
        buffer_add(&text, PLAIN_BEFORE, LENGTH(PLAIN_BEFORE));
        for (long n = 0; n < events; n++) buffer_add(&text, WORD, LENGTH(WORD));
    }
    char rest[LENGTH(EPILOGUE_BEFORE EPILOGUE_AFTER PLAIN_BETWEEN PLAIN_AFTER) + 24];
    int length = snprintf(rest, sizeof rest, "%s%ld%s", stream ? EPILOGUE_BEFORE : PLAIN_BETWEEN, events,
                          stream ? EPILOGUE_AFTER : PLAIN_AFTER);
    buffer_add(&text, rest, (size_t)length);
    return &text;
}

/* Compare what comes next of the body. NULL: it is right. */
static inline const char *body_feed(struct answer *a, const char *data, size_t length, stamped *stamp, void *owner)
{
    if (!a->exact) {
        buffer_add(&a->loose, data, length);
        return NULL;
    }
    while (length) {
        bool delta = a->place >= 0 && a->place < a->events;
        const struct buffer *end = delta || a->place < 0 ? NULL : ending(a);
        const char *expected = a->place < 0 ? PROLOGUE : end ? buffer_start(end) : NULL;
        size_t whole = delta ? DELTA_LENGTH : end ? buffer_length(end) : LENGTH(PROLOGUE);
        if (a->place > a->events) return differs(a, data, length);
        size_t take = length < whole - a->at ? length : whole - a->at;
        if (delta)
            memcpy(a->delta + a->at, data, take);
        else if (memcmp(expected + a->at, data, take))
            return differs(a, data, take);
        data += take;
        length -= take;
        a->at += take;
        if (a->at < whole) return NULL;
        a->at = 0;
        if (!delta) {
            a->place++;
        } else {
            const char *wrong = delta_whole(a, stamp, owner);
            if (wrong) return wrong;
        }
    }
    return NULL;
}

/* The answer has ended: was that all? */
static inline const char *body_end(struct answer *a)
{
    if (a->exact) return a->place > a->events ? NULL : differs(a, "the answer ended", LENGTH("the answer ended"));
    size_t text = LENGTH(WORD) * (size_t)a->events;
    if (buffer_length(&a->loose) && memmem(buffer_start(&a->loose), buffer_length(&a->loose),
                                           buffer_start(ending(a)) + LENGTH(PLAIN_BEFORE), text))
        return NULL;
    return fault("Mismatch: its words are not in the answer", "", 0);
}

/* The head is whole: how does the body go on? */
static inline const char *head_whole(struct answer *a)
{
    const char *coding = strcasestr(a->line, "\r\ntransfer-encoding:"), *given = strcasestr(a->line, "\r\ncontent-length:");
    a->status = atoi(a->line + strcspn(a->line, " "));
    if (coding && !strncasecmp(coding + 20 + strspn(coding + 20, " "), "chunked", 7)) {
        a->part = CHUNK_SIZE;
    } else if (given) {
        a->left = strtoul(given + 17, NULL, 10);
        a->part = a->left ? PLAIN : ENDED;
    } else {
        return fault("Malformed: a body of unknown length", a->line, a->line_length);
    }
    a->line_length = 0;
    return NULL;
}

/* Gather a line until its end has come. Returns how much of the data it took. */
static inline size_t gather(struct answer *a, const char *data, size_t length, const char *end, bool *whole)
{
    size_t taken = 0, end_length = strlen(end);
    *whole = false;
    while (taken < length && a->line_length < MOST_HEAD && !*whole) {
        a->line[a->line_length++] = data[taken++];
        *whole = a->line_length >= end_length && !memcmp(a->line + a->line_length - end_length, end, end_length);
    }
    a->line[a->line_length] = 0;
    return taken;
}

/* Take the next bytes. NULL: they are right; else what is wrong with them. */
static inline const char *answer_feed(struct answer *a, const char *data, size_t length, stamped *stamp, void *owner)
{
    while (length) {
        size_t taken = 0;
        const char *wrong = NULL;
        bool whole;
        switch (a->part) {
        case HEAD:
            taken = gather(a, data, length, "\r\n\r\n", &whole);
            if (whole) wrong = head_whole(a);
            if (!whole && a->line_length == MOST_HEAD) wrong = fault("Malformed: a long head", a->line, MOST_HEAD);
            if (a->status && a->status != 200) {
                char what[40];
                snprintf(what, sizeof what, "Mismatch: status %d", a->status);
                wrong = fault(what, data + taken, length - taken);
            }
            break;
        case CHUNK_SIZE:
            taken = gather(a, data, length, "\r\n", &whole);
            if (!whole && a->line_length < 1000) break;
            char *after;
            a->left = strtoul(a->line, &after, 16);
            if (after == a->line) wrong = fault("Malformed: no size of a chunk", a->line, a->line_length);
            a->last = a->left == 0;
            a->part = a->last ? CHUNK_END : CHUNK;
            a->line_length = 0;
            break;
        case CHUNK:
        case PLAIN:
            taken = length < a->left ? length : a->left;
            wrong = body_feed(a, data, taken, stamp, owner);
            a->left -= taken;
            if (!a->left) a->part = a->part == PLAIN ? ENDED : CHUNK_END;
            break;
        case CHUNK_END:
            taken = gather(a, data, length, "\r\n", &whole);
            if (a->line_length == 2 && !whole) wrong = fault("Malformed: a chunk without its end", a->line, 2);
            if (!whole) break;
            a->part = a->last ? ENDED : CHUNK_SIZE;
            a->line_length = 0;
            break;
        case ENDED:
            return fault("Malformed: after the end of an answer", data, length);
        }
        if (wrong) return wrong;
        data += taken;
        length -= taken;
    }
    return a->part == ENDED ? body_end(a) : NULL;
}

#endif
