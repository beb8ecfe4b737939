/* What a training step does between its large matrix products, on a processor, in one pass over memory each.
 *
 * Hidden states are bf16 (the upper half of a float); statistics and sums are kept in fp32. Functions are called from
 * model/kernels.py with plain pointers and take part in the thread pool of torch, so that two pools never compete.
 * A result depends on its arguments and the number of threads alone.
 */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#error "needs GCC 12 or newer on x86-64; what others make of this would be slower than torch" /* it is optional */
#endif
#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* large, and called from several places */
#define BLOCK 16     /* values computed at once; buffers have room for so many more than a line has */
#define LONGEST 8192 /* widest line that buffers on the stack can hold; fused.py checks it */
#define ROOM (LONGEST + BLOCK)

typedef uint16_t bf16;

INLINE float up(bf16 value) {
    union { uint32_t bits; float number; } both = {(uint32_t)value << 16};
    return both.number;
}

INLINE bf16 down(float value) { /* to the nearest, ties to even; the NaN that arithmetic makes stays one */
    union { float number; uint32_t bits; } both = {value};
    return (bf16)((both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16);
}

INLINE int64_t whole(int64_t count) { /* up to whole vectors: short lines leave no rest to compute one by one */
    return (count + BLOCK - 1) & ~(int64_t)(BLOCK - 1);
}

INLINE float exponential(float x) { /* relative error below 5e-7 between -87 and 88 */
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float whole = __builtin_rintf(x * 1.44269504f);
    float rest = x - whole * 0.69314718f;
    float series = 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    union { int32_t bits; float number; } power = {((int32_t)whole + 127) << 23};
    return series * power.number;
}

/* Threads ---------------------------------------------------------------------------------------------------------- */

typedef void (*work_t)(void *job, int64_t begin, int64_t end, int place);

typedef struct {
    work_t work;
    void *job;
    int64_t count;
    int pieces, next;
    int by_piece; /* whether `place` is the number of the piece, or that of the thread */
} share_t;

#define PIECES 4 /* of the work for each thread: whoever is done takes the next, for cores are not always equally fast */

static void (*pool)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel of torch's own runtime */
static int (*own_number)(void);

const int bertune_version = 4; /* raise it with every change of a signature; kernels.py checks it */

void bertune_init(void *parallel, void *thread_number) {
    pool = (void (*)(void (*)(void *), void *, unsigned, unsigned))parallel;
    own_number = (int (*)(void))thread_number;
}

static void take_pieces(void *given) {
    share_t *share = given;
    int piece;
    while ((piece = __atomic_fetch_add(&share->next, 1, __ATOMIC_RELAXED)) < share->pieces) {
        int64_t begin = share->count * piece / share->pieces, end = share->count * (piece + 1) / share->pieces;
        if (begin < end) share->work(share->job, begin, end, share->by_piece ? piece : own_number());
    }
}

static void cut(work_t work, void *job, int64_t count, int64_t size, int threads, int by_piece) {
    if (threads < 2 || count * size < 32768 || !pool) { /* too little to wake others for */
        work(job, 0, count, 0);
        return;
    }
    share_t share = {work, job, count, PIECES * threads, 0, by_piece};
    pool(take_pieces, &share, (unsigned)threads, 0);
}

/* `count` units of `size` bytes each; what they compute does not depend on who does it. */
static void run(work_t work, void *job, int64_t count, int64_t size, int threads) {
    cut(work, job, count, size, threads, 0);
}

/* The same for what adds up: each of PIECES * threads pieces has a place for its sums, and always the same units. */
static void run_sums(work_t work, void *job, int64_t count, int64_t size, int threads) {
    cut(work, job, count, size, threads, 1);
}

/* Dropout: the bytes of a line come from its key and the site, as in model/noise.py -------------------------------- */

typedef struct {
    const uint32_t *keys; /* [lines, 2], NULL: no dropout */
    uint32_t site;
    int level; /* bytes below it are dropped */
    float factor;
} drop_t;

INLINE uint32_t stir(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

/* What each of `width` values is multiplied by, written in whole vectors. */
INLINE void factors(const drop_t *drop, int64_t line, uint32_t head, int64_t width, uint32_t *words, float *out) {
    uint32_t first = stir(drop->keys[2 * line] ^ (drop->site * 0x85ebca6bu + head * 0xc2b2ae35u + 1u));
    uint32_t second = stir(drop->keys[2 * line + 1] + first);
    int many = (int)whole((width + 3) / 4);
    for (int place = 0; place < many; place++) {
        uint32_t x = first + (uint32_t)place * 0x9e3779b9u;
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= second;
        x ^= x >> 15;
        x *= 0x846ca68bu;
        words[place] = x ^ (x >> 16);
    }
    const uint8_t *bytes = (const uint8_t *)words;
    int level = drop->level;
    float factor = drop->factor;
    int wide = (int)whole(width);
    for (int place = 0; place < wide; place++) out[place] = bytes[place] >= level ? factor : 0.0f;
}

/* Matrix products -------------------------------------------------------------------------------------------------- */

#include "products.h"

/* Attention of every token ------------------------------------------------------------------------------------------ */

#include "attend.h"
#include "attend_tiles.h"

int bertune_with = 2; /* at most: 2, tiles; 1, the processor's products of bf16 pairs; 0, neither. For tests. */

/* Floats that a thread needs for rows of up to `longest` tokens. */
int64_t bertune_room(int64_t longest, int64_t size) {
    int64_t wide = whole(longest), columns = whole(size), with_tiles = tiles_room(longest, size);
    int64_t room = wide * (size + 7 * columns / 2 + TOGETHER + 4 * QUERIES + 2) + QUERIES * columns + 32 * BLOCK;
    return room > with_tiles ? room : with_tiles;
}

void bertune_attend(const bf16 *qkv, bf16 *context, bf16 *grad, float *stats, float *room, const int64_t *offset,
                    int64_t each, int64_t rows, int64_t heads, int64_t size, float scale, const uint32_t *keys,
                    uint32_t site, int level, float factor, int threads) {
    attend_t job = {qkv, context, grad, stats, room, each, offset, rows, heads, size, scale,
                    {keys, site, level, factor}};
    work_t units = bertune_with && __builtin_cpu_supports("avx512bf16") ? attend_units_pairs : attend_units_plain;
    if (bertune_with > 1 && size % SIDE == 0 && bertune_tiles()) units = attend_units_tiles;
    run(units, &job, rows * heads, offset[rows] * size * 16 / (rows ? rows : 1), threads);
}

/* Attention of the first token of each row alone: no groups, no padding, no product worth its call ----------------- */

typedef struct {
    const bf16 *query;     /* [rows, heads * size] */
    const bf16 *both;      /* [tokens, 2 * heads * size]: key and value */
    float *weights;        /* [heads, tokens] before dropout */
    bf16 *context;         /* [rows, heads * size]; backward: its gradient, read only */
    bf16 *grad_query;      /* as query */
    bf16 *grad_both;       /* as both */
    const int64_t *offset; /* [rows + 1] */
    int64_t rows, heads, size;
    float scale;
    drop_t drop; /* keys by row */
} first_t;

FAST static void first_rows(void *job, int64_t begin, int64_t end, int thread) {
    const first_t *first = job;
    int size = (int)first->size;
    int64_t wide = first->heads * size, tokens = first->offset[first->rows];
    float line[ROOM], kept[ROOM], asked[ROOM], sum[ROOM];
    uint32_t words[ROOM];
    for (int64_t row = begin; row < end; row++)
        for (int64_t head = 0; head < first->heads; head++) {
            int64_t from = first->offset[row];
            int length = (int)(first->offset[row + 1] - from);
            const bf16 *query = first->query + row * wide + head * size;
            const bf16 *keys = first->both + from * 2 * wide + head * size, *values = keys + wide;
            float *weights = first->weights + head * tokens + from, highest = -__builtin_inff(), total = 0.0f;
            for (int place = 0; place < size; place++) {
                asked[place] = up(query[place]);
                sum[place] = 0.0f;
            }
            for (int key = 0; key < length; key++) {
                float score = 0.0f;
                for (int place = 0; place < size; place++) score += asked[place] * up(keys[key * 2 * wide + place]);
                line[key] = score * first->scale;
                highest = line[key] > highest ? line[key] : highest;
            }
            for (int key = 0; key < length; key++) {
                line[key] = exponential(line[key] - highest);
                total += line[key];
            }
            if (first->drop.keys) factors(&first->drop, row, (uint32_t)head, length, words, kept);
            for (int key = 0; key < length; key++) {
                float weight = line[key] / total;
                weights[key] = weight;
                if (first->drop.keys) weight *= kept[key];
                for (int place = 0; place < size; place++) sum[place] += weight * up(values[key * 2 * wide + place]);
            }
            for (int place = 0; place < size; place++) first->context[row * wide + head * size + place] = down(sum[place]);
        }
}

FAST static void first_back_rows(void *job, int64_t begin, int64_t end, int thread) {
    const first_t *first = job;
    int size = (int)first->size;
    int64_t wide = first->heads * size, tokens = first->offset[first->rows];
    float line[ROOM], kept[ROOM], asked[ROOM], given[ROOM], sum[ROOM];
    uint32_t words[ROOM];
    for (int64_t row = begin; row < end; row++)
        for (int64_t head = 0; head < first->heads; head++) {
            int64_t from = first->offset[row], at = row * wide + head * size;
            int length = (int)(first->offset[row + 1] - from);
            const bf16 *keys = first->both + from * 2 * wide + head * size, *values = keys + wide;
            bf16 *grad_keys = first->grad_both + from * 2 * wide + head * size, *grad_values = grad_keys + wide;
            const float *weights = first->weights + head * tokens + from;
            float total = 0.0f;
            for (int place = 0; place < size; place++) {
                asked[place] = up(first->query[at + place]);
                given[place] = up(first->context[at + place]);
                sum[place] = 0.0f;
            }
            if (first->drop.keys) factors(&first->drop, row, (uint32_t)head, length, words, kept);
            for (int key = 0; key < length; key++) {
                float factor = first->drop.keys ? kept[key] : 1.0f, used = weights[key] * factor, part = 0.0f;
                for (int place = 0; place < size; place++) {
                    part += given[place] * up(values[key * 2 * wide + place]);
                    grad_values[key * 2 * wide + place] = down(used * given[place]);
                }
                line[key] = part * factor;
                total += line[key] * weights[key];
            }
            for (int key = 0; key < length; key++) {
                float score = weights[key] * (line[key] - total) * first->scale;
                for (int place = 0; place < size; place++) {
                    sum[place] += score * up(keys[key * 2 * wide + place]);
                    grad_keys[key * 2 * wide + place] = down(score * asked[place]);
                }
            }
            for (int place = 0; place < size; place++) first->grad_query[at + place] = down(sum[place]);
        }
}

void bertune_first(const bf16 *query, const bf16 *both, float *weights, bf16 *context, bf16 *grad_query,
                   bf16 *grad_both, const int64_t *offset, int64_t rows, int64_t heads, int64_t size, float scale,
                   const uint32_t *keys, uint32_t site, int level, float factor, int threads) {
    first_t job = {query, both, weights, context, grad_query, grad_both, offset, rows, heads, size, scale,
                   {keys, site, level, factor}};
    run(grad_both ? first_back_rows : first_rows, &job, rows, heads * size * 64, threads);
}

/* LayerNorm(residual + dropout(update)) ---------------------------------------------------------------------------- */

typedef struct {
    bf16 *update;                /* [lines, width]; forward: in, the update; out, the sum that is normed */
    const bf16 *residual;        /* forward only */
    const float *weight, *shift; /* [width] */
    float *stats;                /* [lines, 2]: mean and inverse deviation */
    bf16 *out;                   /* forward: the result; backward: gradient of the residual */
    const bf16 *grad;            /* backward only */
    bf16 *grad_update;           /* backward: gradient of the update; `out` itself where nothing was dropped */
    float *sums;                 /* backward: [pieces, 3, width]: gradients of weight and shift, sum of grad_update */
    int64_t width;
    float eps;
    drop_t drop;
} norm_t;

FAST static void norm_lines(void *job, int64_t begin, int64_t end, int thread) {
    const norm_t *norm = job;
    int width = (int)norm->width;
    const float *restrict weight = norm->weight, *restrict shift = norm->shift;
    float kept[ROOM], sum[ROOM];
    uint32_t words[ROOM];
    for (int64_t line = begin; line < end; line++) {
        bf16 *restrict update = norm->update + line * width;
        bf16 *restrict out = norm->out + line * width;
        const bf16 *restrict residual = norm->residual + line * width;
        float mean = 0.0f, square = 0.0f;
        if (norm->drop.keys) {
            factors(&norm->drop, line, 0, width, words, kept);
            for (int place = 0; place < width; place++) {
                bf16 low = down(up(residual[place]) + up(update[place]) * kept[place]);
                update[place] = low;
                sum[place] = up(low);
                mean += sum[place];
            }
        } else {
            for (int place = 0; place < width; place++) {
                bf16 low = down(up(residual[place]) + up(update[place]));
                update[place] = low;
                sum[place] = up(low);
                mean += sum[place];
            }
        }
        mean /= width;
        for (int place = 0; place < width; place++) {
            float apart = sum[place] - mean;
            sum[place] = apart;
            square += apart * apart;
        }
        float scale = 1.0f / __builtin_sqrtf(square / width + norm->eps);
        norm->stats[2 * line] = mean;
        norm->stats[2 * line + 1] = scale;
        for (int place = 0; place < width; place++)
            out[place] = down(sum[place] * scale * weight[place] + shift[place]);
    }
}

FAST static void norm_back_lines(void *job, int64_t begin, int64_t end, int piece) {
    const norm_t *norm = job;
    int width = (int)norm->width;
    const float *restrict weight = norm->weight;
    float *restrict grad_weight = norm->sums + piece * 3 * width;
    float *restrict grad_shift = grad_weight + width;
    float *restrict grad_sum = grad_shift + width;
    float kept[ROOM], apart[ROOM], scaled[ROOM];
    uint32_t words[ROOM];
    for (int64_t line = begin; line < end; line++) {
        const bf16 *restrict total = norm->update + line * width;
        const bf16 *restrict grad = norm->grad + line * width;
        bf16 *restrict out = norm->out + line * width;
        float mean = norm->stats[2 * line], scale = norm->stats[2 * line + 1], plain = 0.0f, along = 0.0f;
        for (int place = 0; place < width; place++) {
            float given = up(grad[place]), normed = (up(total[place]) - mean) * scale, value = given * weight[place];
            grad_weight[place] += given * normed;
            grad_shift[place] += given;
            apart[place] = normed;
            scaled[place] = value;
            plain += value;
            along += value * normed;
        }
        plain /= width;
        along /= width;
        if (norm->drop.keys) {
            bf16 *restrict grad_update = norm->grad_update + line * width;
            factors(&norm->drop, line, 0, width, words, kept);
            for (int place = 0; place < width; place++) {
                float value = scale * (scaled[place] - plain - apart[place] * along), part = value * kept[place];
                out[place] = down(value);
                grad_update[place] = down(part);
                grad_sum[place] += part;
            }
        } else {
            for (int place = 0; place < width; place++) {
                float value = scale * (scaled[place] - plain - apart[place] * along);
                out[place] = down(value);
                grad_sum[place] += value;
            }
        }
    }
}

void bertune_norm(bf16 *update, const bf16 *residual, const float *weight, const float *shift, float *stats, bf16 *out,
                  int64_t lines, int64_t width, float eps, const uint32_t *keys, uint32_t site, int level,
                  float factor, int threads) {
    norm_t job = {update, residual, weight, shift, stats, out, 0, 0, 0, width, eps, {keys, site, level, factor}};
    run(norm_lines, &job, lines, width * 8, threads);
}

void bertune_norm_back(bf16 *total, const bf16 *grad, const float *weight, float *stats, bf16 *out, bf16 *grad_update,
                       float *sums, int64_t lines, int64_t width, const uint32_t *keys, uint32_t site, int level,
                       float factor, int threads) {
    norm_t job = {total, 0, weight, 0, stats, out, grad, grad_update, sums, width, 0.0f, {keys, site, level, factor}};
    run_sums(norm_back_lines, &job, lines, width * 8, threads);
}

/* Activation and sums over tokens ---------------------------------------------------------------------------------- */

typedef struct {
    bf16 *values;          /* look_up: in, x; out, the derivative. times: in and out. */
    bf16 *other;           /* look_up: out, the result. times: the derivative, NULL for 1. */
    const uint32_t *table; /* look_up: [65536], result in the lower half, derivative in the upper */
    float *sums;           /* times: [pieces, width] */
    int64_t width;
} point_t;

FAST static void look_up_values(void *job, int64_t begin, int64_t end, int thread) {
    const point_t *point = job;
    const uint32_t *restrict table = point->table;
    bf16 *restrict values = point->values, *restrict out = point->other;
    for (int64_t place = begin; place < end; place++) {
        uint32_t both = table[values[place]];
        out[place] = (bf16)both;
        values[place] = (bf16)(both >> 16);
    }
}

FAST static void times_lines(void *job, int64_t begin, int64_t end, int piece) {
    const point_t *point = job;
    int width = (int)point->width;
    float *restrict sums = point->sums + piece * width;
    for (int64_t line = begin; line < end; line++) {
        bf16 *restrict values = point->values + line * width;
        if (point->other) {
            const bf16 *restrict other = point->other + line * width;
            for (int place = 0; place < width; place++) {
                float value = up(values[place]) * up(other[place]);
                values[place] = down(value);
                sums[place] += value;
            }
        } else {
            for (int place = 0; place < width; place++) sums[place] += up(values[place]);
        }
    }
}

/* There are no more than 65,536 bf16 numbers: any function of one is a table, exact to the last bit. */
void bertune_look_up(bf16 *values, bf16 *out, const uint32_t *table, int64_t count, int threads) {
    point_t job = {values, out, table, 0, 0};
    run(look_up_values, &job, count, 16, threads);
}

void bertune_times(bf16 *values, bf16 *other, float *sums, int64_t lines, int64_t width, int threads) {
    point_t job = {values, other, 0, sums, width};
    run_sums(times_lines, &job, lines, width * 6, threads);
}

/* Scores of a vocabulary, turned into their own gradient ------------------------------------------------------------ */

typedef struct {
    bf16 *scores;          /* [lines, step]: in, scores; out, the gradient of the summed cross-entropy times `scale` */
    const float *shift;    /* [width], added to the scores; NULL: nothing */
    const int64_t *target; /* [lines] */
    float *stats;          /* [lines, 2]: how far the highest score lies above that of the target, the sum of exponentials */
    float *sums;           /* [pieces, width]: of the gradient over lines; NULL where nobody asks for it */
    float *room;           /* [pieces, width + BLOCK]: a line's exponentials */
    int64_t width, step;   /* what a line has beyond its width becomes zero */
    float scale;
} guess_t;

FAST static void guess_lines(void *job, int64_t begin, int64_t end, int piece) {
    const guess_t *guess = job;
    int width = (int)guess->width;
    float *restrict room = guess->room + piece * (guess->width + BLOCK);
    float *restrict sums = guess->sums ? guess->sums + piece * guess->width : 0;
    const float *restrict shift = guess->shift;
    for (int64_t line = begin; line < end; line++) {
        bf16 *restrict scores = guess->scores + line * guess->step;
        int64_t target = guess->target[line];
        if (shift)
            for (int place = 0; place < width; place++) room[place] = up(scores[place]) + shift[place];
        else
            for (int place = 0; place < width; place++) room[place] = up(scores[place]);
        float top = highest(room, width), total = 0.0f;
        guess->stats[2 * line] = top - room[target];
        for (int place = 0; place < width; place++) {
            float value = exponential(room[place] - top);
            room[place] = value;
            total += value;
        }
        guess->stats[2 * line + 1] = total;
        float share = guess->scale / total;
        if (sums)
            for (int place = 0; place < width; place++) {
                float value = room[place] * share;
                scores[place] = down(value);
                sums[place] += value;
            }
        else
            for (int place = 0; place < width; place++) scores[place] = down(room[place] * share);
        scores[target] = down(room[target] * share - guess->scale);
        if (sums) sums[target] -= guess->scale;
        memset(scores + width, 0, (size_t)(guess->step - width) * sizeof(bf16));
    }
}

void bertune_guess(bf16 *scores, const float *shift, const int64_t *target, float *stats, float *sums, float *room,
                   int64_t lines, int64_t width, int64_t step, float scale, int threads) {
    guess_t job = {scores, shift, target, stats, sums, room, width, step, scale};
    run_sums(guess_lines, &job, lines, width * 8, threads);
}

/* Adam -------------------------------------------------------------------------------------------------------------- */

typedef struct {
    float *weight, *mean, *square; /* fp32 master and moments */
    bf16 *low;                     /* the weight that the model computes with; NULL where that is the master itself */
    const bf16 *grad_low;          /* the gradient, in either type */
    const float *grad;
    float scale; /* of the gradient, from clipping */
    float beta1, beta2, rate, root, eps, keep;
    double *sums; /* square_sum: [pieces] */
} adam_t;

/* As Loshchilov and Hutter 2019 with bias correction: keep = 1 - lr decay, rate = lr / (1 - beta1^t),
 * root = 1 / sqrt(1 - beta2^t). */
INLINE void adam_value(const adam_t *adam, int64_t place, float grad) {
    grad *= adam->scale;
    float mean = adam->mean[place] + (grad - adam->mean[place]) * (1.0f - adam->beta1);
    float square = adam->square[place] * adam->beta2 + grad * grad * (1.0f - adam->beta2);
    adam->mean[place] = mean;
    adam->square[place] = square;
    float weight = adam->weight[place] * adam->keep;
    weight -= adam->rate * mean / (__builtin_sqrtf(square) * adam->root + adam->eps);
    adam->weight[place] = weight;
}

FAST static void adam_values(void *job, int64_t begin, int64_t end, int thread) {
    const adam_t adam = *(adam_t *)job;
    if (adam.grad_low)
#pragma GCC ivdep
        for (int64_t place = begin; place < end; place++) adam_value(&adam, place, up(adam.grad_low[place]));
    else
#pragma GCC ivdep
        for (int64_t place = begin; place < end; place++) adam_value(&adam, place, adam.grad[place]);
    if (adam.low)
#pragma GCC ivdep
        for (int64_t place = begin; place < end; place++) adam.low[place] = down(adam.weight[place]);
}

FAST static void square_values(void *job, int64_t begin, int64_t end, int piece) {
    const adam_t *adam = job;
    double total = 0.0;
    for (int64_t from = begin; from < end; from += 4096) { /* fp32 sums of a few thousand keep their digits */
        int64_t to = from + 4096 < end ? from + 4096 : end;
        float part = 0.0f;
        if (adam->grad_low)
            for (int64_t place = from; place < to; place++) part += up(adam->grad_low[place]) * up(adam->grad_low[place]);
        else
            for (int64_t place = from; place < to; place++) part += adam->grad[place] * adam->grad[place];
        total += part;
    }
    adam->sums[piece] = total;
}

/* Blocks of this many values go through the cache once for the update and the copy in bf16. */
static void adam_blocks(void *job, int64_t begin, int64_t end, int thread) {
    for (int64_t from = begin; from < end; from += 4096)
        adam_values(job, from, from + 4096 < end ? from + 4096 : end, thread);
}

void bertune_adam(float *weight, float *mean, float *square, bf16 *low, const bf16 *grad_low, const float *grad,
                  int64_t count, float scale, float beta1, float beta2, float rate, float root, float eps, float keep,
                  int threads) {
    adam_t job = {weight, mean, square, low, grad_low, grad, scale, beta1, beta2, rate, root, eps, keep, 0};
    run(adam_blocks, &job, count, 28, threads);
}

void bertune_square_sum(const bf16 *grad_low, const float *grad, double *sums, int64_t count, int threads) {
    adam_t job = {0, 0, 0, 0, grad_low, grad, 1.0f, 0, 0, 0, 0, 0, 0, sums};
    run_sums(square_values, &job, count, 2, threads);
}
