/* Matrix products in bf16 on a processor with tiles (AMX), with sums in fp32.
 *
 * oneDNN, which torch asks, makes new machine code for every number of tokens, and batches without padding hardly ever
 * have the same number twice: on such a processor that took five times as long as the products themselves. Nothing
 * here depends on that number.
 *
 * Work is cut into squares of SIDE by SIDE results: 2 by 2 tiles of sums, two tiles of either side, and four products
 * for each step of SIDE along the depth. The right side is laid out in panels of SIDE columns, two neighbours in depth
 * side by side, as tiles want it. SIDE lines of the left side meet all panels before the next lines do.
 */

#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIDE 32
#define DEEP 1536  /* depth computed at once, */
#define ACROSS 384 /* and where the left side has to be turned around for it */
#define LINES 256  /* lines whose sums wait for the rest of their depth: they fit the second cache */
#define SQUARE (SIDE * SIDE)
#define AHEAD 2    /* squares of a panel that are called for before they are needed */

typedef struct {
    const bf16 *left, *right; /* a value of the left is at [line * left_step + depth], or across if turned; so right */
    const bf16 *add;          /* added to the result, a line for each or (add_step 0) one for all; NULL: nothing */
    bf16 *out;                /* [lines, columns], `out_step` from line to line */
    int64_t left_step, right_step, add_step, out_step, lines, columns, depth;
    int left_turned, right_turned;
    bf16 *panels; /* [columns / SIDE, depth / 2, SIDE, 2]: the right side */
    char *room;   /* [threads, each] bytes */
    int64_t each;
} product_t;

INLINE int64_t steps_of(int64_t depth) { return (depth + SIDE - 1) / SIDE; }

/* Steps of SIDE along the depth that are computed at once. */
INLINE int64_t deep_of(int left_turned) { return (left_turned ? ACROSS : DEEP) / SIDE; }

/* Squares of sums that a thread needs: two in turn, or as many as wait for the rest of their depth. */
static int64_t squares_of(int64_t columns, int64_t depth, int left_turned) {
    return steps_of(depth) <= deep_of(left_turned) ? 2 : LINES / SIDE * (columns / SIDE);
}

/* Bytes that a thread needs beside the panels: its sums, and lines of the left side laid out anew. */
static int64_t product_each(int64_t columns, int64_t depth, int left_turned) {
    int64_t sums = squares_of(columns, depth, left_turned) * SQUARE;
    return sums * (int64_t)sizeof(float) + LINES * DEEP * (int64_t)sizeof(bf16);
}

int64_t bertune_product_room(int64_t columns, int64_t depth, int left_turned, int threads) {
    int64_t panels = steps_of(depth) * SIDE * columns * (int64_t)sizeof(bf16);
    return 64 + panels + threads * product_each(columns, depth, left_turned);
}

/* Whether this processor has such tiles and the system lets this process use them. */
int bertune_tiles(void) {
    static int answer = -1;
    if (answer < 0) {
        unsigned int words[4] = {0};
        __asm__("cpuid" : "=a"(words[0]), "=b"(words[1]), "=c"(words[2]), "=d"(words[3]) : "a"(7), "c"(0));
        int has = (words[3] >> 22 & 1) && (words[3] >> 24 & 1) && __builtin_cpu_supports("avx512bf16");
        answer = has && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    }
    return answer;
}

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")

/* Rows and columns of 16 by 16 numbers of 32 bits change places. */
INLINE void turn_square(__m512i *rows) {
    __m512i pairs[16], fours[16], eights[16];
    for (int row = 0; row < 16; row += 2) {
        pairs[row] = _mm512_unpacklo_epi32(rows[row], rows[row + 1]);
        pairs[row + 1] = _mm512_unpackhi_epi32(rows[row], rows[row + 1]);
    }
    for (int row = 0; row < 16; row += 4)
        for (int half = 0; half < 2; half++) {
            fours[row + 2 * half] = _mm512_unpacklo_epi64(pairs[row + half], pairs[row + half + 2]);
            fours[row + 2 * half + 1] = _mm512_unpackhi_epi64(pairs[row + half], pairs[row + half + 2]);
        }
    for (int row = 0; row < 4; row++) {
        eights[row] = _mm512_shuffle_i32x4(fours[row], fours[row + 4], 0x88);
        eights[row + 4] = _mm512_shuffle_i32x4(fours[row], fours[row + 4], 0xdd);
        eights[row + 8] = _mm512_shuffle_i32x4(fours[row + 8], fours[row + 12], 0x88);
        eights[row + 12] = _mm512_shuffle_i32x4(fours[row + 8], fours[row + 12], 0xdd);
    }
    for (int row = 0; row < 8; row++) {
        rows[row] = _mm512_shuffle_i32x4(eights[row], eights[row + 8], 0x88);
        rows[row + 8] = _mm512_shuffle_i32x4(eights[row], eights[row + 8], 0xdd);
    }
}

/* 16 values of a line and of the next, in turn. */
INLINE __m512i pairs_of(__m256i first, __m256i second) {
    __m512i weave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                     23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(weave, _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1));
}

/* SIDE values of a line and of the next, as pairs, to 2 SIDE places in a row. */
INLINE void weave_side(__m512i first, __m512i second, void *to) {
    __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                   39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(first, low, second));
    _mm512_storeu_si512((bf16 *)to + SIDE, _mm512_permutex2var_epi16(first, high, second));
}

/* The right side, panel by panel. */
static void lay_panels(void *given, int64_t begin, int64_t end, int thread) {
    const product_t *job = given;
    int64_t depth = job->depth, pairs = steps_of(depth) * SIDE / 2;
    __m512i none = _mm512_setzero_si512();
    for (int64_t panel = begin; panel < end; panel++) {
        bf16 *to = job->panels + panel * pairs * 2 * SIDE;
        if (job->right_turned) { /* lines of the right side are columns of the panel; its depth is whole */
            for (int half = 0; half < 2; half++) {
                const bf16 *from = job->right + (panel * SIDE + half * 16) * job->right_step;
                for (int64_t pair = 0; pair < pairs; pair += 16) {
                    __m512i rows[16];
                    for (int row = 0; row < 16; row++)
                        rows[row] = _mm512_loadu_si512(from + row * job->right_step + 2 * pair);
                    turn_square(rows);
                    for (int row = 0; row < 16; row++)
                        _mm512_store_si512(to + (pair + row) * 2 * SIDE + half * SIDE, rows[row]);
                }
            }
            continue;
        }
        const bf16 *from = job->right + panel * SIDE;
        for (int64_t pair = 0; pair < pairs; pair++) {
            __m512i first = 2 * pair < depth ? _mm512_loadu_si512(from + 2 * pair * job->right_step) : none;
            __m512i second = 2 * pair + 1 < depth ? _mm512_loadu_si512(from + (2 * pair + 1) * job->right_step) : none;
            weave_side(first, second, to + pair * 2 * SIDE);
        }
    }
}

/* [SIDE, steps * SIDE]: the left side from `line`, and from `from` of its depth, on; zero beyond its ends. */
INLINE void lay_lines(const product_t *job, int64_t line, int64_t from, int64_t steps, bf16 *to) {
    int64_t wide = steps * SIDE, step = job->left_step;
    if (!job->left_turned) {
        for (int64_t row = 0; row < SIDE; row++)
            for (int64_t place = 0; place < wide; place += SIDE)
                _mm512_store_si512(to + row * wide + place, line + row < job->lines
                    ? _mm512_loadu_si512(job->left + (line + row) * step + from + place) : _mm512_setzero_si512());
        return;
    }
    for (int64_t place = 0; place < wide; place += SIDE)
        for (int half = 0; half < 2; half++) {
            const bf16 *at = job->left + (from + place) * step + line + half * 16;
            __m512i rows[16];
            for (int row = 0; row < 16; row++) {
                int64_t deep = from + place + 2 * row;
                __m256i none = _mm256_setzero_si256();
                const void *one = at + 2 * row * step, *next = at + (2 * row + 1) * step;
                __m256i first = deep < job->depth ? _mm256_loadu_si256(one) : none;
                __m256i second = deep + 1 < job->depth ? _mm256_loadu_si256(next) : none;
                rows[row] = pairs_of(first, second);
            }
            turn_square(rows);
            for (int row = 0; row < 16; row++) _mm512_store_si512(to + (half * 16 + row) * wide + place, rows[row]);
        }
}

/* Tiles 0 to 3 are a square of sums, 4 and 5 lines of the left side, 6 and 7 columns of the right. */
INLINE void begin_square(const float *sums, int64_t step, int fresh) {
    int64_t line = step * (int64_t)sizeof(float);
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, line);
        _tile_loadd(1, sums + 16, line);
        _tile_loadd(2, sums + 16 * step, line);
        _tile_loadd(3, sums + 16 * step + 16, line);
    }
}

/* SIDE along the depth. In the right side pairs of lines are `line` bytes apart, and the next 16 columns `next`. */
INLINE void step_square(const bf16 *left, int64_t step, const char *right, int64_t line, int64_t next) {
    int64_t left_line = step * (int64_t)sizeof(bf16);
    _tile_loadd(6, right, line);
    _tile_loadd(7, right + next, line);
    _tile_loadd(4, left, left_line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left + 16 * step, left_line);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

INLINE void end_square(float *sums, int64_t step) {
    int64_t line = step * (int64_t)sizeof(float);
    _tile_stored(0, sums, line);
    _tile_stored(1, sums + 16, line);
    _tile_stored(2, sums + 16 * step, line);
    _tile_stored(3, sums + 16 * step + 16, line);
}

INLINE __m512 raised(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

/* A square of sums that is still to be written where the result lies: its next line, and how many are left. */
typedef struct {
    const float *sums;
    const bf16 *add;
    bf16 *out;
    int64_t add_step, out_step, left;
} pending_t;

INLINE void put_line(pending_t *pending) {
    __m512 first = _mm512_load_ps(pending->sums), second = _mm512_load_ps(pending->sums + 16);
    if (pending->add) {
        first = _mm512_add_ps(first, raised(_mm256_loadu_si256((const void *)pending->add)));
        second = _mm512_add_ps(second, raised(_mm256_loadu_si256((const void *)(pending->add + 16))));
        pending->add += pending->add_step;
    }
    _mm512_storeu_si512(pending->out, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    pending->sums += SIDE;
    pending->out += pending->out_step;
    pending->left--;
}

/* A square of sums: `steps` of SIDE along the depth, between which the square before it is written. */
INLINE void add_square(const bf16 *left, int64_t step, const bf16 *panel, int64_t steps, float *sums, int fresh,
                       pending_t *pending) {
    int64_t some = (pending->left + steps - 1) / steps;
    begin_square(sums, SIDE, fresh);
    for (int64_t place = 0; place < steps; place++, left += SIDE, panel += SQUARE) {
        step_square(left, step, (const char *)panel, SIDE * 4, SIDE * 2);
#pragma GCC unroll 32
        for (int row = 0; row < SIDE; row++)
            _mm_prefetch((const char *)(panel + AHEAD * SQUARE + row * SIDE), _MM_HINT_T0);
        for (int64_t count = 0; count < some && pending->left; count++) put_line(pending);
    }
    end_square(sums, SIDE);
}

/* All tiles are 16 lines of 64 bytes. Each thread says so before it computes, for others set them as they like. */
INLINE void open_tiles(void) {
    static const struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shape);
}

static void product_blocks(void *given, int64_t begin, int64_t end, int thread) {
    const product_t *job = given;
    open_tiles();
    int64_t steps = steps_of(job->depth), most = deep_of(job->left_turned);
    int64_t panels = job->columns / SIDE, many = LINES / SIDE, turn = 0;
    float *sums = (float *)(job->room + thread * job->each);
    pending_t pending = {0};
    bf16 *laid = (bf16 *)(sums + squares_of(job->columns, job->depth, job->left_turned) * SQUARE);
    for (int64_t block = begin; block < end; block += many) {
        int64_t blocks = end - block < many ? end - block : many;
        for (int64_t step = 0; step < steps; step += most) {
            int64_t deep = steps - step < most ? steps - step : most;
            const bf16 *lines[LINES / SIDE];
            int64_t left_steps[LINES / SIDE];
            for (int64_t each = 0; each < blocks; each++) {
                int64_t line = (block + each) * SIDE;
                lines[each] = job->left + line * job->left_step + step * SIDE;
                left_steps[each] = job->left_step;
                if (job->left_turned || line + SIDE > job->lines) {
                    bf16 *to = laid + each * SIDE * DEEP;
                    lay_lines(job, line, step * SIDE, deep, to);
                    lines[each] = to;
                    left_steps[each] = deep * SIDE;
                }
            }
            int last = step + deep == steps;
            for (int64_t each = 0; each < blocks; each++) {
                for (int64_t panel = 0; panel < panels; panel++) {
                    const bf16 *right = job->panels + (panel * steps + step) * SQUARE;
                    int64_t place = step || !last ? panel * many + each : (turn ^= 1), line = (block + each) * SIDE;
                    add_square(lines[each], left_steps[each], right, deep, sums + place * SQUARE, step == 0, &pending);
                    const bf16 *add = job->add ? job->add + line * job->add_step + panel * SIDE : 0;
                    bf16 *out = job->out + line * job->out_step + panel * SIDE;
                    int64_t left = job->lines - line < SIDE ? job->lines - line : SIDE;
                    if (last) pending = (pending_t){sums + place * SQUARE, add, out, job->add_step, job->out_step, left};
                }
            }
            while (pending.left) put_line(&pending); /* the sums that it reads are about to be overwritten */
        }
    }
    _tile_release();
}

#pragma GCC pop_options

/* out = add + left right. Columns come in whole SIDEs; so does the depth, unless it runs across both sides' lines, and
 * so do lines that are read across. `room`: bertune_product_room bytes. */
void bertune_product(const bf16 *left, const bf16 *right, const bf16 *add, bf16 *out, char *room, int64_t left_step,
                     int64_t right_step, int64_t add_step, int64_t out_step, int64_t lines, int64_t columns,
                     int64_t depth, int left_turned, int right_turned, int threads) {
    char *aligned = (char *)(((uintptr_t)room + 63) & ~(uintptr_t)63);
    char *rooms = aligned + steps_of(depth) * SIDE * columns * (int64_t)sizeof(bf16);
    product_t job = {left, right, add, out, left_step, right_step, add_step, out_step, lines, columns, depth,
                     left_turned, right_turned, (bf16 *)aligned, rooms, product_each(columns, depth, left_turned)};
    run(lay_panels, &job, columns / SIDE, depth * SIDE * 4, threads);
    run(product_blocks, &job, (lines + SIDE - 1) / SIDE, columns * depth, threads);
}
