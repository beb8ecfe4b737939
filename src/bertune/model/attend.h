/* Attention within each row of tokens, forward and back, with dropout.
 *
 * A unit of work is one head of one row. Its scores are never kept: they are small products over data that stays in
 * the cache, and the backward pass makes them again from the two numbers a query that the forward pass keeps. Products
 * read bf16 in pairs along the dimension they sum over, so one side is laid out for that first: `turn` and `weave`.
 *
 * Here is what happens to a line of scores; attend_units.h, which has the products, is compiled with and without the
 * processor's instructions for pairs of bf16; attend_tiles.h has them for processors with tiles.
 */

typedef struct {
    const bf16 *qkv;       /* [tokens, 3 * heads * size]: query, key and value; size is even */
    bf16 *context;         /* [tokens, heads * size]; backward: its gradient, read only */
    bf16 *grad;            /* backward: as qkv */
    float *stats;          /* [heads, tokens, 2]: highest score of each query, and one over the sum of its exponentials */
    float *room;           /* [threads, each]: what a unit lays out for itself */
    int64_t each;
    const int64_t *offset; /* [rows + 1], tokens before each row */
    int64_t rows, heads, size;
    float scale;
    drop_t drop; /* keys by token */
} attend_t;

#define QUERIES 4   /* attended at once: enough sums side by side to keep products busy */
#define TOGETHER 32 /* queries whose share in the gradients of keys and values is added up at once */

typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t w16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t h16 __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t pair_t __attribute__((may_alias)); /* two bf16 side by side */

/* One head of one row. */
typedef struct {
    const bf16 *query, *key, *value; /* of the first token; `stride` from token to token, as `grad` */
    bf16 *context, *grad;            /* context: `hidden` from token to token */
    float *stats;
    int64_t stride, hidden, token;
    uint32_t head;
    int length, wide, columns; /* tokens; these (tiles: up to whole tiles) and the head's size, up to whole vectors */
} unit_t;

/* Lines for QUERIES queries, each `wide` values. */
typedef struct {
    float *scores, *kept;
    bf16 *weights, *slopes;
    uint32_t *words;
} line_t;

INLINE unit_t open_unit(const attend_t *job, int64_t row, int64_t head) {
    int64_t hidden = job->heads * job->size, stride = 3 * hidden, token = job->offset[row], at = head * job->size;
    int length = (int)(job->offset[row + 1] - token);
    const bf16 *query = job->qkv + token * stride + at;
    return (unit_t){query, query + hidden, query + 2 * hidden, job->context + token * hidden + at,
                    job->grad ? job->grad + token * stride + at : 0,
                    job->stats + 2 * (head * job->offset[job->rows] + token), stride, hidden, token, (uint32_t)head,
                    length, (int)whole(length), (int)whole(job->size)};
}

INLINE void *take(float **room, int64_t count) {
    float *taken = *room;
    *room += whole(count);
    return taken;
}

INLINE line_t open_lines(float **room, int wide) {
    float *scores = take(room, QUERIES * wide), *kept = take(room, wide);
    bf16 *weights = take(room, QUERIES * wide / 2), *slopes = take(room, QUERIES * wide / 2);
    return (line_t){scores, kept, weights, slopes, take(room, wide / 4 + BLOCK)};
}

static const w16 PLACES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* [length, size] to [wide / 2, whole(size)] pairs of two tokens each, zero beyond both ends. */
INLINE void weave(const bf16 *from, int64_t stride, int length, int wide, int size, pair_t *to) {
    int columns = (int)whole(size);
    for (int place = 0; place < wide; place += 2, to += columns) {
        const bf16 *first = from + place * stride, *second = first + stride;
        int column = 0;
        if (place + 1 < length)
            for (; column < size; column++) to[column] = (uint32_t)second[column] << 16 | first[column];
        else if (place < length)
            for (; column < size; column++) to[column] = first[column];
        for (; column < columns; column++) to[column] = 0;
    }
}

INLINE void weave_lines(const bf16 *first, int wide, pair_t *to) {
    for (int place = 0; place < wide; place++) to[place] = (uint32_t)first[wide + place] << 16 | first[place];
}

INLINE void lower(const float *from, bf16 *to, int size) {
    for (int place = 0; place < size; place++) to[place] = down(from[place]);
}

/* What follows works on whole vectors by hand: lines of two or three of them would mostly be a compiler's loop ends. */

INLINE void exponentials(v16 *x) { /* as `exponential`; no values above 88, for there are none after the maximum */
    w16 low = (w16)(*x < -87.0f);
    v16 least = (v16){0} - 87.0f, value = (v16)(((w16)least & low) | ((w16)*x & ~low));
    i16 power = __builtin_convertvector(value * 1.44269504f + 127.5f, i16); /* 127 more than the nearest integer */
    v16 rest = value - (__builtin_convertvector(power, v16) - 127.0f) * 0.69314718f;
    v16 series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    *x = series * (v16)(power << 23);
}

INLINE void down_all(const v16 *values, bf16 *to) { /* as `down` */
    w16 bits = (w16)*values;
    *(h16 *)to = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, h16);
}

INLINE void raise(v16 *to, const v16 *others) {
    w16 above = (w16)(*others > *to);
    *to = (v16)(((w16)*others & above) | ((w16)*to & ~above));
}

INLINE float sum_of(v16 *values) {
    for (uint32_t half = BLOCK / 2; half; half /= 2) *values += __builtin_shuffle(*values, PLACES ^ half);
    return (*values)[0];
}

INLINE float highest(const float *values, int count) {
    v16 tops = (v16){0} - __builtin_inff();
    int place = 0;
    for (; place + BLOCK <= count; place += BLOCK) raise(&tops, (const v16 *)(values + place));
    if (place < count) {
        w16 real = (w16)(PLACES < (uint32_t)(count - place)), none = (w16)((v16){0} - __builtin_inff());
        v16 rest = (v16)((*(const w16 *)(values + place) & real) | (none & ~real));
        raise(&tops, &rest);
    }
    for (uint32_t half = BLOCK / 2; half; half /= 2) {
        v16 other = __builtin_shuffle(tops, PLACES ^ half);
        raise(&tops, &other);
    }
    return tops[0];
}

/* exp(scale (score - top)) in place of each score, but 0 beyond the `left` keys that the row still has. */
INLINE void risen(v16 *scores, float top, float scale, int left) {
    *scores = (*scores - top) * scale;
    exponentials(scores);
    if (left < BLOCK) *scores = (v16)((w16)*scores & (w16)(PLACES < (uint32_t)left));
}

/* Scores of `many` queries to weights after dropout. Each part for all of them: none waits for the one before. */
INLINE void weigh(const attend_t *job, const unit_t *unit, const line_t *lines, int first, int many) {
    int wide = unit->wide, length = unit->length, filled = (int)whole(length);
    float *kept = lines->kept, tops[QUERIES], totals[QUERIES];
    for (int line = 0; line < many; line++) tops[line] = highest(lines->scores + line * wide, length);
    for (int line = 0; line < many; line++) {
        v16 total = {0};
        for (int key = 0; key < filled; key += BLOCK) {
            v16 *scores = (v16 *)(lines->scores + line * wide + key);
            risen(scores, tops[line], job->scale, length - key);
            total += *scores;
        }
        totals[line] = sum_of(&total);
    }
    for (int line = 0; line < many; line++) {
        float share = 1.0f / totals[line];
        unit->stats[2 * (first + line)] = tops[line];
        unit->stats[2 * (first + line) + 1] = share;
        if (job->drop.keys)
            factors(&job->drop, unit->token + first + line, unit->head, length, lines->words, kept);
        for (int key = 0; key < filled; key += BLOCK) {
            v16 weights = *(v16 *)(lines->scores + line * wide + key) * share;
            if (job->drop.keys) weights *= *(v16 *)(kept + key);
            down_all(&weights, lines->weights + line * wide + key);
        }
    }
}

/* Scores of `many` queries, and `given`, the gradient of their dropped weights, to these weights and the slopes: the
 * gradient of the scores before scaling. The lines that remain of QUERIES become zero. */
INLINE void weigh_back(const attend_t *job, const unit_t *unit, const line_t *lines, float *given, int first, int many) {
    int wide = unit->wide, length = unit->length, filled = (int)whole(length);
    float *kept = lines->kept, totals[QUERIES];
    for (int line = 0; line < many; line++) {
        float top = unit->stats[2 * (first + line)], share = unit->stats[2 * (first + line) + 1];
        v16 total = {0};
        if (job->drop.keys)
            factors(&job->drop, unit->token + first + line, unit->head, length, lines->words, kept);
        for (int key = 0; key < filled; key += BLOCK) {
            v16 *weights = (v16 *)(lines->scores + line * wide + key), *slopes = (v16 *)(given + line * wide + key);
            risen(weights, top, job->scale, length - key);
            *weights *= share;
            v16 used = *weights;
            if (job->drop.keys) {
                used *= *(v16 *)(kept + key);
                *slopes *= *(v16 *)(kept + key);
            }
            down_all(&used, lines->weights + line * wide + key);
            total += *weights * *slopes;
        }
        totals[line] = sum_of(&total);
    }
    for (int line = 0; line < many; line++)
        for (int key = 0; key < filled; key += BLOCK) {
            int place = line * wide + key;
            v16 slopes = *(v16 *)(lines->scores + place) * (*(v16 *)(given + place) - totals[line]) * job->scale;
            down_all(&slopes, lines->slopes + place);
        }
    memset(lines->weights + many * wide, 0, 2 * (QUERIES - many) * wide);
    memset(lines->slopes + many * wide, 0, 2 * (QUERIES - many) * wide);
}

#include "attend_units.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#define BF16_PAIRS
#include "attend_units.h"
#pragma GCC pop_options
