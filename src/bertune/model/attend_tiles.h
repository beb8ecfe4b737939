/* The units of attend.h with the processor's tiles (AMX), for heads whose size is a multiple of SIDE.
 *
 * TOGETHER queries are attended at once: as many as a square of sums has lines. Keys and everything laid out for them
 * are filled up with zeros to a multiple of SIDE, and so are the queries.
 */

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")

/* The right side of a product as tiles of pairs: bytes from pair to pair, to the next 16 columns, and SIDE deeper. */
typedef struct {
    const pair_t *pairs;
    int64_t line, next, deeper;
} right_t;

/* out [SIDE, SIDE], or on top of what is there: left [SIDE, steps * SIDE] times the right side. */
INLINE void tiles_square(const bf16 *left, int64_t left_step, right_t right, int64_t steps, float *out,
                         int64_t out_step, int on_top) {
    const char *pairs = (const char *)right.pairs;
    begin_square(out, out_step, !on_top);
    for (int64_t step = 0; step < steps; step++, left += SIDE, pairs += right.deeper)
        step_square(left, left_step, pairs, right.line, right.next);
    end_square(out, out_step);
}

/* [length, size] to [wide / 16, size / 2, 16] pairs along the size, zero beyond the length. */
INLINE void tiles_turn(const bf16 *from, int64_t stride, int length, int wide, int size, pair_t *to) {
    for (int token = 0; token < wide; token += 16)
        for (int place = 0; place < size; place += SIDE, to += 256) {
            __m512i rows[16];
            for (int row = 0; row < 16; row++)
                rows[row] = token + row < length ? _mm512_loadu_si512(from + (token + row) * stride + place)
                                                 : _mm512_setzero_si512();
            turn_square(rows);
            for (int row = 0; row < 16; row++) _mm512_storeu_si512(to + 16 * row, rows[row]);
        }
}

/* As `weave`, of a size in whole SIDEs. */
INLINE void tiles_weave(const bf16 *from, int64_t stride, int length, int wide, int size, pair_t *to) {
    __m512i none = _mm512_setzero_si512();
    for (int token = 0; token < wide; token += 2, to += size)
        for (int place = 0; place < size; place += SIDE) {
            const bf16 *first = from + token * stride + place;
            weave_side(token < length ? _mm512_loadu_si512(first) : none,
                       token + 1 < length ? _mm512_loadu_si512(first + stride) : none, to + place);
        }
}

/* `lower`, of a size in whole SIDEs. */
INLINE void tiles_lower(const float *from, bf16 *to, int size) {
    for (int place = 0; place < size; place += SIDE) {
        __m512 first = _mm512_loadu_ps(from + place), second = _mm512_loadu_ps(from + place + 16);
        _mm512_storeu_si512(to + place, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
}

/* SIDE lines [., SIDE] of a side that is read across, to [SIDE, SIDE]. */
INLINE void tiles_across(const bf16 *from, int64_t step, bf16 *to) {
    for (int half = 0; half < 2; half++) {
        __m512i rows[16];
        for (int row = 0; row < 16; row++) {
            const bf16 *first = from + 2 * row * step + half * 16;
            const void *second = first + step;
            rows[row] = pairs_of(_mm256_loadu_si256((const void *)first), _mm256_loadu_si256(second));
        }
        turn_square(rows);
        for (int row = 0; row < 16; row++) _mm512_storeu_si512(to + (half * 16 + row) * SIDE, rows[row]);
    }
}

/* TOGETHER lines from `first` on, as they lie or, at the end, copied and filled up. */
INLINE const bf16 *tiles_lines(const bf16 *from, int64_t *step, int first, int length, int size, bf16 *room) {
    if (first + TOGETHER <= length) return from + first * *step;
    for (int line = 0; line < TOGETHER; line++)
        if (first + line < length)
            memcpy(room + line * size, from + (first + line) * *step, sizeof(bf16) * size);
        else
            memset(room + line * size, 0, sizeof(bf16) * size);
    *step = size;
    return room;
}

/* [TOGETHER, wide]: lines times keys or values as tiles_turn laid them out. */
INLINE void tiles_scores(const bf16 *lines, int64_t step, const pair_t *turned, int wide, int size, float *out) {
    for (int key = 0; key < wide; key += SIDE) {
        right_t right = {turned + key * (size / 2), 64, size / 2 * 64, 1024};
        tiles_square(lines, step, right, size / SIDE, out + key, wide, 0);
    }
}

/* [TOGETHER, size]: weights or slopes times what `tiles_weave` laid out, and as many lines of it as there are to `to`. */
INLINE void tiles_sums(const bf16 *weights, const pair_t *woven, int wide, int size, float *sums, bf16 *to,
                       int64_t step, int many) {
    for (int column = 0; column < size; column += SIDE) {
        right_t right = {woven + column, 4 * size, 64, 64 * size};
        tiles_square(weights, wide, right, wide / SIDE, sums + column, size, 0);
    }
    for (int line = 0; line < many; line++) tiles_lower(sums + line * size, to + line * step, size);
}

/* The buffers of both passes, each of TOGETHER lines. */
typedef struct {
    float *scores, *given, *sums, *kept;
    bf16 *weights, *slopes, *left;
    uint32_t *words;
} tiles_t;

INLINE tiles_t tiles_open(float **room, int wide, int size) {
    float *scores = take(room, TOGETHER * wide), *given = take(room, TOGETHER * wide);
    float *sums = take(room, TOGETHER * size);
    bf16 *weights = take(room, TOGETHER / 2 * wide), *slopes = take(room, TOGETHER / 2 * wide);
    bf16 *left = take(room, SIDE / 2 * size);
    memset(weights, 0, sizeof(bf16) * TOGETHER * wide); /* what lies beyond the last vector of keys stays zero */
    memset(slopes, 0, sizeof(bf16) * TOGETHER * wide);
    return (tiles_t){scores, given, sums, take(room, wide), weights, slopes, left, take(room, wide / 4 + BLOCK)};
}

/* The lines of QUERIES of them, from `line` on. */
INLINE line_t tiles_some(const tiles_t *all, int line, int wide) {
    int place = line * wide;
    return (line_t){all->scores + place, all->kept, all->weights + place, all->slopes + place, all->words};
}

/* Floats that a unit of up to `longest` tokens needs. */
static int64_t tiles_room(int64_t longest, int64_t size) {
    int64_t wide = steps_of(longest) * SIDE;
    return wide * (5 * size + 3 * TOGETHER + 4) + 4 * TOGETHER * (size + SIDE) + 64 * BLOCK;
}

INLINE void attend_unit_tiles(const attend_t *job, int64_t row, int64_t head, float *room) {
    unit_t unit = open_unit(job, row, head);
    int length = unit.length, size = (int)job->size, wide = unit.wide = (int)steps_of(length) * SIDE;
    pair_t *keys = take(&room, wide * size / 2), *values = take(&room, wide * size / 2);
    tiles_t all = tiles_open(&room, wide, size);
    tiles_turn(unit.key, unit.stride, length, wide, size, keys);
    tiles_weave(unit.value, unit.stride, length, wide, size, values);
    for (int first = 0; first < length; first += TOGETHER) {
        int many = first + TOGETHER < length ? TOGETHER : length - first;
        int64_t step = unit.stride;
        const bf16 *queries = tiles_lines(unit.query, &step, first, length, size, all.left);
        tiles_scores(queries, step, keys, wide, size, all.scores);
        for (int line = 0; line < many; line += QUERIES) {
            line_t lines = tiles_some(&all, line, wide);
            weigh(job, &unit, &lines, first + line, many - line < QUERIES ? many - line : QUERIES);
        }
        memset(all.weights + many * wide, 0, sizeof(bf16) * (TOGETHER - many) * wide);
        tiles_sums(all.weights, values, wide, size, all.sums, unit.context + first * unit.hidden, unit.hidden, many);
    }
}

/* On top of sums [wide, size]: weights or slopes [TOGETHER, wide], read across, times the lines that they are for. */
INLINE void tiles_gather(const bf16 *weights, const pair_t *woven, int wide, int size, bf16 *across, float *sums) {
    for (int key = 0; key < wide; key += SIDE) {
        tiles_across(weights + key, wide, across);
        for (int column = 0; column < size; column += SIDE) {
            right_t right = {woven + column, 4 * size, 64, 0};
            tiles_square(across, SIDE, right, 1, sums + key * size + column, size, 1);
        }
    }
}

INLINE void attend_unit_back_tiles(const attend_t *job, int64_t row, int64_t head, float *room) {
    unit_t unit = open_unit(job, row, head);
    int length = unit.length, size = (int)job->size, wide = unit.wide = (int)steps_of(length) * SIDE;
    int64_t half = wide * size / 2;
    pair_t *keys = take(&room, half), *values = take(&room, half), *keys_woven = take(&room, half);
    pair_t *queries = take(&room, half), *grads = take(&room, half);
    float *grad_keys = take(&room, 2 * half), *grad_values = take(&room, 2 * half);
    tiles_t all = tiles_open(&room, wide, size);
    tiles_turn(unit.key, unit.stride, length, wide, size, keys);
    tiles_turn(unit.value, unit.stride, length, wide, size, values);
    tiles_weave(unit.key, unit.stride, length, wide, size, keys_woven);
    tiles_weave(unit.query, unit.stride, length, wide, size, queries);
    tiles_weave(unit.context, unit.hidden, length, wide, size, grads);
    memset(grad_keys, 0, sizeof(float) * wide * size);
    memset(grad_values, 0, sizeof(float) * wide * size);
    for (int first = 0; first < length; first += TOGETHER) {
        int many = first + TOGETHER < length ? TOGETHER : length - first;
        int64_t step = unit.stride, grad_step = unit.hidden;
        const bf16 *asked = tiles_lines(unit.query, &step, first, length, size, all.left);
        tiles_scores(asked, step, keys, wide, size, all.scores);
        const bf16 *offered = tiles_lines(unit.context, &grad_step, first, length, size, all.left);
        tiles_scores(offered, grad_step, values, wide, size, all.given);
        memset(all.weights + many * wide, 0, sizeof(bf16) * (TOGETHER - many) * wide);
        memset(all.slopes + many * wide, 0, sizeof(bf16) * (TOGETHER - many) * wide);
        for (int line = 0; line < many; line += QUERIES) {
            line_t lines = tiles_some(&all, line, wide);
            int some = many - line < QUERIES ? many - line : QUERIES;
            weigh_back(job, &unit, &lines, all.given + line * wide, first + line, some);
        }
        bf16 *grad = unit.grad + first * unit.stride;
        tiles_sums(all.slopes, keys_woven, wide, size, all.sums, grad, unit.stride, many);
        int64_t from = first / 2 * size;
        tiles_gather(all.slopes, queries + from, wide, size, all.left, grad_keys);
        tiles_gather(all.weights, grads + from, wide, size, all.left, grad_values);
    }
    for (int key = 0; key < length; key++) {
        bf16 *grad = unit.grad + unit.hidden + key * unit.stride;
        tiles_lower(grad_keys + key * size, grad, size);
        tiles_lower(grad_values + key * size, grad + unit.hidden, size);
    }
}

static void attend_units_tiles(void *given, int64_t begin, int64_t end, int thread) {
    const attend_t *job = given;
    float *room = job->room + thread * job->each;
    open_tiles();
    for (int64_t unit = begin; unit < end; unit++) {
        if (job->grad)
            attend_unit_back_tiles(job, unit / job->heads, unit % job->heads, room);
        else
            attend_unit_tiles(job, unit / job->heads, unit % job->heads, room);
    }
    _tile_release();
}

#pragma GCC pop_options
