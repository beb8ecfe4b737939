/* The products of attention, and the units of work they make up: see attend.h, which includes this twice. */

#ifdef BF16_PAIRS
#define NAME(name) name##_pairs
#else
#define NAME(name) name##_plain
#endif

/* sum += left[0] right[.][0] + left[1] right[.][1] */
INLINE void NAME(add)(v16 *sum, pair_t left, const w16 *right) {
#ifdef BF16_PAIRS
    *sum = (v16)_mm512_dpbf16_ps((__m512)*sum, (__m512bh)_mm512_set1_epi32((int)left), (__m512bh)*right);
#else
    *sum += (v16)(*right << 16) * up((bf16)left);
    *sum += (v16)(*right & 0xffff0000u) * up((bf16)(left >> 16));
#endif
}

INLINE void NAME(dots_of)(const pair_t *const *left, int64_t next, const pair_t *right, int64_t line, int64_t block,
                          int count, float *out, int64_t wide, int vectors, int on_top) {
    v16 sums[QUERIES][2];
    for (int query = 0; query < QUERIES; query++)
        for (int vector = 0; vector < vectors; vector++)
            sums[query][vector] = on_top ? *(v16 *)(out + query * wide + vector * BLOCK) : (v16){0};
    for (int place = 0; place < count; place++)
        for (int vector = 0; vector < vectors; vector++) {
            w16 both = *(const w16 *)(right + place * line + vector * block);
            for (int query = 0; query < QUERIES; query++)
                NAME(add)(&sums[query][vector], left[query][place * next], &both);
        }
    for (int query = 0; query < QUERIES; query++)
        for (int vector = 0; vector < vectors; vector++)
            *(v16 *)(out + query * wide + vector * BLOCK) = sums[query][vector];
}

/* out[query, column] = the sum over `count` pairs of left[query][pair * next] and those of `right`, or that on top of
 * what is there; out: [QUERIES, columns]. In `right`, pairs are `line` apart, and every BLOCK columns `block`. */
APART void NAME(dots)(const pair_t *const *left, int64_t next, const pair_t *right, int64_t line, int64_t block,
                      int count, float *out, int columns, int on_top) {
    int column = 0;
    for (; column + BLOCK < columns; column += 2 * BLOCK, right += 2 * block)
        NAME(dots_of)(left, next, right, line, block, count, out + column, columns, 2, on_top);
    if (column < columns) NAME(dots_of)(left, next, right, line, block, count, out + column, columns, 1, on_top);
}

/* [length, 2 * pairs] to [wide / BLOCK, pairs, BLOCK] pairs, zero beyond the length. */
APART void NAME(turn)(const bf16 *from, int64_t stride, int length, int wide, int pairs, pair_t *to) {
    for (int token = 0; token < wide; token += BLOCK) {
        int pair = 0;
#ifdef BF16_PAIRS
        for (; pair + BLOCK <= pairs; pair += BLOCK, to += BLOCK * BLOCK) {
            w16 lines[BLOCK];
            for (int line = 0; line < BLOCK; line++)
                lines[line] = token + line < length ? *(w16 *)(from + (token + line) * stride + 2 * pair) : (w16){0};
            for (uint32_t step = 1; step < BLOCK; step *= 2) { /* swap the blocks off the diagonal, ever larger ones */
                w16 odd = (w16)((PLACES & step) != 0);
                w16 upper = PLACES + (odd & (BLOCK - step)), lower = PLACES + (~odd & step) + (odd & BLOCK);
                for (uint32_t both = 0; both < BLOCK / 2; both++) {
                    uint32_t line = both + (both & -step); /* those whose bit `step` is 0 */
                    w16 first = lines[line], second = lines[line + step];
                    lines[line] = __builtin_shuffle(first, second, upper);
                    lines[line + step] = __builtin_shuffle(first, second, lower);
                }
            }
            for (int line = 0; line < BLOCK; line++) *(w16 *)(to + line * BLOCK) = lines[line];
        }
#endif
        for (; pair < pairs; pair++, to += BLOCK)
            for (int line = 0; line < BLOCK; line++)
                to[line] = token + line < length ? *(pair_t *)(from + (token + line) * stride + 2 * pair) : 0;
    }
}

INLINE void NAME(attend_unit)(const attend_t *job, int64_t row, int64_t head, float *room) {
    unit_t unit = open_unit(job, row, head);
    int length = unit.length, wide = unit.wide, columns = unit.columns, pairs = (int)job->size / 2;
    pair_t *keys = take(&room, pairs * wide), *values = take(&room, wide / 2 * columns);
    line_t lines = open_lines(&room, wide);
    float *sums = take(&room, QUERIES * columns);
    NAME(turn)(unit.key, unit.stride, length, wide, pairs, keys);
    weave(unit.value, unit.stride, length, wide, (int)job->size, values);
    for (int first = 0; first < length; first += QUERIES) {
        const pair_t *asked[QUERIES], *shares[QUERIES];
        for (int query = 0; query < QUERIES; query++) { /* those beyond the end repeat the last; nobody reads them */
            int place = first + query < length ? first + query : length - 1;
            asked[query] = (const pair_t *)(unit.query + place * unit.stride);
            shares[query] = (const pair_t *)(lines.weights + query * wide);
        }
        NAME(dots)(asked, 1, keys, BLOCK, pairs * BLOCK, pairs, lines.scores, wide, 0);
        int many = first + QUERIES < length ? QUERIES : length - first;
        weigh(job, &unit, &lines, first, many);
        NAME(dots)(shares, 1, values, columns, BLOCK, wide / 2, sums, columns, 0);
        for (int query = 0; query < many; query++)
            lower(sums + query * columns, unit.context + (first + query) * unit.hidden, (int)job->size);
    }
}

INLINE void NAME(attend_unit_back)(const attend_t *job, int64_t row, int64_t head, float *room) {
    unit_t unit = open_unit(job, row, head);
    int length = unit.length, wide = unit.wide, columns = unit.columns, size = (int)job->size, pairs = size / 2;
    pair_t *keys = take(&room, pairs * wide), *values = take(&room, pairs * wide);
    pair_t *keys_woven = take(&room, wide / 2 * columns), *queries = take(&room, wide / 2 * columns);
    pair_t *grads = take(&room, wide / 2 * columns);
    pair_t *weights = take(&room, TOGETHER / 2 * wide), *slopes = take(&room, TOGETHER / 2 * wide);
    float *grad_keys = take(&room, wide * columns), *grad_values = take(&room, wide * columns);
    float *given = take(&room, QUERIES * wide), *sums = take(&room, QUERIES * columns);
    line_t lines = open_lines(&room, wide);
    NAME(turn)(unit.key, unit.stride, length, wide, pairs, keys);
    NAME(turn)(unit.value, unit.stride, length, wide, pairs, values);
    weave(unit.key, unit.stride, length, wide, size, keys_woven);
    weave(unit.query, unit.stride, length, wide, size, queries);
    weave(unit.context, unit.hidden, length, wide, size, grads);
    memset(grad_keys, 0, 4 * wide * columns);
    memset(grad_values, 0, 4 * wide * columns);
    for (int start = 0; start < length; start += TOGETHER) {
        int end = start + TOGETHER < length ? start + TOGETHER : length;
        for (int first = start; first < end; first += QUERIES) {
            const pair_t *asked[QUERIES], *offered[QUERIES], *slope[QUERIES];
            for (int query = 0; query < QUERIES; query++) {
                int place = first + query < length ? first + query : length - 1;
                asked[query] = (const pair_t *)(unit.query + place * unit.stride);
                offered[query] = (const pair_t *)(unit.context + place * unit.hidden);
                slope[query] = (const pair_t *)(lines.slopes + query * wide);
            }
            NAME(dots)(asked, 1, keys, BLOCK, pairs * BLOCK, pairs, lines.scores, wide, 0);
            NAME(dots)(offered, 1, values, BLOCK, pairs * BLOCK, pairs, given, wide, 0);
            int many = first + QUERIES < length ? QUERIES : length - first;
            weigh_back(job, &unit, &lines, given, first, many);
            NAME(dots)(slope, 1, keys_woven, columns, BLOCK, wide / 2, sums, columns, 0);
            for (int query = 0; query < many; query++)
                lower(sums + query * columns, unit.grad + (first + query) * unit.stride, size);
            for (int query = 0; query < QUERIES; query += 2) {
                int line = (first - start + query) / 2 * wide;
                weave_lines(lines.weights + query * wide, wide, weights + line);
                weave_lines(lines.slopes + query * wide, wide, slopes + line);
            }
        }
        int count = (end - start + QUERIES - 1) / QUERIES * QUERIES / 2;
        for (int key = 0; key < length; key += QUERIES) {
            const pair_t *weight[QUERIES], *slope[QUERIES];
            for (int place = 0; place < QUERIES; place++) {
                weight[place] = weights + key + place;
                slope[place] = slopes + key + place;
            }
            int from = start / 2 * columns, to = key * columns;
            NAME(dots)(slope, wide, queries + from, columns, BLOCK, count, grad_keys + to, columns, 1);
            NAME(dots)(weight, wide, grads + from, columns, BLOCK, count, grad_values + to, columns, 1);
        }
    }
    for (int key = 0; key < length; key++) {
        lower(grad_keys + key * columns, unit.grad + unit.hidden + key * unit.stride, size);
        lower(grad_values + key * columns, unit.grad + 2 * unit.hidden + key * unit.stride, size);
    }
}

/* Units are the heads of the first row, of the second and so on. */
static void NAME(attend_units)(void *given, int64_t begin, int64_t end, int thread) {
    const attend_t *job = given;
    float *room = job->room + thread * job->each;
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t row = unit / job->heads, head = unit % job->heads;
        if (job->grad)
            NAME(attend_unit_back)(job, row, head, room);
        else
            NAME(attend_unit)(job, row, head, room);
    }
}

#undef NAME
