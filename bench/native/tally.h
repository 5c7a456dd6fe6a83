/* What came of a run, and the line of JSON that says so: the fields of `Tally` in load.py. */
#ifndef TALLY_H
#define TALLY_H

#include "common.h"
#include "talk.h"

#define MOST_REASONS 200
#define TOLD_REASONS 10

enum timed { EVENT, LAG, FIRST_BYTE, FIRST_EVENT, ANSWER, OPEN, TIMED };
static const char *const TIMED_NAMES[TIMED] = {"event", "lag", "first_byte", "first_event", "answer", "open"};

struct samples {
    ns *values;
    size_t count, room;
};

struct reason {
    char *text;
    long count;
};

struct tally {
    long exchanges, asked, dropped, events, reads, bytes, answers;
    double cpu_seconds, seconds;
    struct samples times[TIMED];
    struct reason reasons[MOST_REASONS];
    int reason_count;
};

static inline void sample(struct tally *t, enum timed what, ns took)
{
    struct samples *s = &t->times[what];
    if (s->count == s->room) {
        s->room = 2 * s->room + 4096;
        s->values = checked(realloc(s->values, s->room * sizeof *s->values));
    }
    s->values[s->count++] = took;
}

/* Count failures by their reason; when there are very many reasons, the last one stands for the rest. */
static inline void failed(struct tally *t, const char *reason, long count)
{
    int n = 0;
    while (n < t->reason_count && strcmp(t->reasons[n].text, reason)) n++;
    if (n == MOST_REASONS) n--;
    if (n == t->reason_count) t->reasons[t->reason_count++].text = checked(strdup(reason));
    t->reasons[n].count += count;
}

static inline int by_value(const void *a, const void *b)
{
    ns x = *(const ns *)a, y = *(const ns *)b;
    return (x > y) - (x < y);
}

static inline int by_count(const void *a, const void *b)
{
    long x = ((const struct reason *)a)->count, y = ((const struct reason *)b)->count;
    return (x < y) - (x > y);
}

/* The nearest-rank quantile, in µs. */
static inline double quantile(const struct samples *s, double share)
{
    double exact = share * (double)s->count;
    size_t rank = (size_t)exact;
    if ((double)rank < exact) rank++;
    return (double)s->values[rank ? rank - 1 : 0] / 1000;
}

static inline void print_text(const char *text)
{
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c == '"' || *c == '\\' || *c < ' ' || *c > '~')
            printf("\\u%04x", *c);
        else
            putchar(*c);
    putchar('"');
}

static inline void print_tally(struct tally *t)
{
    static const char *const names[] = {QUANTILE_NAMES};
    static const double quantiles[] = {QUANTILE_SHARES}, shares[] = {SHARES};
    printf("{\"exchanges\": %ld, \"asked\": %ld, \"dropped\": %ld, \"events\": %ld, \"reads\": %ld, \"bytes\": %ld, ",
           t->exchanges, t->asked, t->dropped, t->events, t->reads, t->bytes);
    printf("\"answers\": %ld, \"cpu_seconds\": %.6f, \"seconds\": %.6f, \"failures\": {", t->answers, t->cpu_seconds,
           t->seconds);
    qsort(t->reasons, (size_t)t->reason_count, sizeof *t->reasons, by_count);
    for (int n = 0; n < t->reason_count && n < TOLD_REASONS; n++) {
        printf("%s", n ? ", " : "");
        print_text(t->reasons[n].text);
        printf(": %ld", t->reasons[n].count);
    }
    printf("}, \"times\": {");
    const char *comma = "";
    for (int what = 0; what < TIMED; what++) {
        struct samples *s = &t->times[what];
        if (!s->count) continue;
        qsort(s->values, s->count, sizeof *s->values, by_value);
        printf("%s\"%s\": {", comma, TIMED_NAMES[what]);
        for (size_t n = 0; n < sizeof quantiles / sizeof *quantiles; n++)
            printf("%s\"%s\": %.3f", n ? ", " : "", names[n], quantile(s, quantiles[n]));
        printf("}");
        comma = ", ";
    }
    printf("}, \"cdf\": {");
    comma = "";
    for (int what = 0; what < TIMED; what++) {
        if (!t->times[what].count || (what != EVENT && what != FIRST_BYTE)) continue;
        printf("%s\"%s\": [", comma, TIMED_NAMES[what]);
        for (size_t n = 0; n < sizeof shares / sizeof *shares; n++)
            printf("%s%.3f", n ? ", " : "", quantile(&t->times[what], shares[n]));
        printf("]");
        comma = ", ";
    }
    printf("}}\n");
    fflush(stdout);
}

#endif
