/* The parts of a training step between its matrix products, each in one pass over memory, forward and backward; called by
 * klype.model.compiled, which says what they compute.
 *
 * Texts lie end to end as N rows: piece s has the rows starts[s] .. starts[s+1]. A text is one piece, or a tree of them: a
 * prefix, and branches that each go on from its end and do not see one another; tree i has the pieces trees[i] .. trees[i+1].
 * Numbers in memory are float or (low) bfloat16, sums are always float. Shapes: D width, H query heads, G key heads, K head
 * width, F hidden width, J taps, V vocabulary, P positions of a text. D and F are multiples of 16, K of 8. Trees are divided
 * among threads by their number alone, and what threads sum is added in their order, so that equal calls give equal bits. */
#include "vectors.h"

typedef struct {
    const int64_t *starts, *trees; /* trees: NULL if every piece is a text of its own */
    int64_t number;                /* of trees */
} Texts;

typedef struct { int64_t first, T, before; } Piece; /* its first row, its number of rows, the length of its prefix */

INLINE Span pieces(const Texts *t, int64_t tree) {
    Span alone = {tree, tree + 1}, own = {t->trees ? t->trees[tree] : 0, t->trees ? t->trees[tree + 1] : 0};
    return t->trees ? own : alone;
}

INLINE Piece piece(const Texts *t, Span tree, int64_t s) {
    Piece found = {t->starts[s], t->starts[s + 1] - t->starts[s], s > tree.from ? t->starts[tree.from + 1] - t->starts[tree.from] : 0};
    return found;
}

/* Norm and convolution: x = x + delta; n = x / rms(x) * weight; u_t = n_t + sum over j of taps_j * n_{t-j}. The last 1 + J of
 * what is normed are in a ring, by position. */

typedef struct {
    const void *x, *delta, *weight, *taps; /* delta and taps may be NULL */
    void *sum, *u;                         /* sum: x + delta, where there is a delta */
    float *scale;                          /* [N]: 1 / rms */
    const void *sum_gradient, *u_gradient; /* the first may be NULL */
    void *x_gradient;
    float *weight_gradient; /* [threads, 1 + J, D], zeros at first; the result (weight, then taps) is in the first thread's */
    Texts texts;
    int64_t D, J;
    float eps;
} Norm;

INLINE void norm_piece(const Norm *n, Piece p, float *ring, int low) {
    int64_t D = n->D, J = n->J;
    for (int64_t t = p.first; t < p.first + p.T; t++) {
        int64_t at = t * D, age = p.before + t - p.first;
        float *own = ring + age % (J + 1) * D;
        Vec square = {0};
        for (int64_t d = 0; d < D; d += W) {
            Vec x = get(n->x, at + d, low);
            if (n->delta) {
                put(n->sum, at + d, x + get(n->delta, at + d, low), low);
                x = get(n->sum, at + d, low);
            }
            *(Vec *)(own + d) = x;
            square += x * x;
        }
        float scale = 1.f / sqrtf(total(square) / (float)D + n->eps);
        n->scale[t] = scale;
        int64_t taps = age < J ? age : J;
        for (int64_t d = 0; d < D; d += W) {
            Vec u = *(Vec *)(own + d) * scale * get(n->weight, d, low);
            *(Vec *)(own + d) = u;
            for (int64_t j = 1; j <= taps; j++)
                u += get(n->taps, (j - 1) * D + d, low) * *(Vec *)(ring + (age - j) % (J + 1) * D + d);
            put(n->u, at + d, u, low);
        }
    }
}

INLINE void norm_forward(const Norm *n, Span span, float *ring, int low) {
    int64_t size = (n->J + 1) * n->D;
    for (int64_t i = span.from; i < span.to; i++) {
        Span tree = pieces(&n->texts, i);
        for (int64_t s = tree.from; s < tree.to; s++) {
            if (s > tree.from) memcpy(ring, ring + size, (size_t)size * sizeof(float));
            norm_piece(n, piece(&n->texts, tree, s), ring, low);
            if (s == tree.from && tree.to - s > 1) memcpy(ring + size, ring, (size_t)size * sizeof(float));
        }
    }
}

/* The convolution's gradient of row t (returned) and of the taps (added to sums), from later rows of its piece, and of the
 * branches if it is near the end of their prefix. */
INLINE Vec from_later(const Norm *n, Span tree, int64_t s, int64_t left, int64_t t, int64_t d, Vec normed, float *sums, int low) {
    int64_t D = n->D, J = n->J, taps = left < J ? left : J;
    Vec g = get(n->u_gradient, t * D + d, low);
    for (int64_t j = 1; j <= taps; j++) {
        Vec later = get(n->u_gradient, (t + j) * D + d, low);
        g += get(n->taps, (j - 1) * D + d, low) * later;
        *(Vec *)(sums + j * D + d) += later * normed;
    }
    if (s > tree.from || left >= J) return g;
    for (int64_t branch = s + 1; branch < tree.to; branch++) {
        Piece p = piece(&n->texts, tree, branch);
        for (int64_t j = left + 1; j <= J && j - left <= p.T; j++) {
            Vec later = get(n->u_gradient, (p.first + j - left - 1) * D + d, low);
            g += get(n->taps, (j - 1) * D + d, low) * later;
            *(Vec *)(sums + j * D + d) += later * normed;
        }
    }
    return g;
}

INLINE void norm_backward(const Norm *n, Span span, float *sums, float *own, int low) {
    int64_t D = n->D;
    for (int64_t i = span.from; i < span.to; i++) {
        Span tree = pieces(&n->texts, i);
        for (int64_t s = tree.from; s < tree.to; s++)
            for (int64_t t = n->texts.starts[s]; t < n->texts.starts[s + 1]; t++) {
                int64_t at = t * D, left = n->texts.starts[s + 1] - 1 - t;
                float scale = n->scale[t];
                Vec along = {0};
                for (int64_t d = 0; d < D; d += W) {
                    Vec weight = get(n->weight, d, low), unit = get(n->x, at + d, low) * scale;
                    Vec g = from_later(n, tree, s, left, t, d, unit * weight, sums, low);
                    *(Vec *)(sums + d) += g * unit;
                    g *= weight;
                    along += g * unit;
                    *(Vec *)(own + d) = g;
                }
                float mean = total(along) / (float)D;
                for (int64_t d = 0; d < D; d += W) {
                    Vec g = (*(Vec *)(own + d) - get(n->x, at + d, low) * (scale * mean)) * scale;
                    if (n->sum_gradient) g += get(n->sum_gradient, at + d, low);
                    put(n->x_gradient, at + d, g, low);
                }
            }
    }
}

int klype_norm(const Norm *n, int backward, int low, int threads) {
    int failed = 0;
    int64_t sums = (1 + n->J) * n->D;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *own = room(2 * (n->J + 1) * n->D);
        Span span = mine(n->texts.number);
        if (!own) failed = 1;
        else if (!backward) low ? norm_forward(n, span, own, 1) : norm_forward(n, span, own, 0);
        else {
            float *to = n->weight_gradient + me() * sums;
            low ? norm_backward(n, span, to, own, 1) : norm_backward(n, span, to, own, 0);
        }
        free(own);
    }
    if (backward)
        for (int thread = 1; thread < threads; thread++)
            for (int64_t i = 0; i < sums; i++) n->weight_gradient[i] += n->weight_gradient[thread * sums + i];
    return failed;
}

/* SwiGLU: silu(gate) * up; rows hold gate, then up. */

INLINE void swiglu(const void *in, const void *gradient, void *out, int64_t F, Span span, int low) {
    for (int64_t n = span.from; n < span.to; n++)
        for (int64_t f = 0; f < F; f += W) {
            for (int half = 0; half < 2; half++) { /* of the next row */
                expected(in, (2 * n + 2 + half) * F + f, W, low);
                expected(out, gradient ? (2 * n + 2 + half) * F + f : (n + 1) * F + f, W, low);
            }
            if (gradient) expected(gradient, (n + 1) * F + f, W, low);
            Vec gate = get(in, n * 2 * F + f, low), up = get(in, n * 2 * F + F + f, low);
            Vec chance = 1.f / (1.f + exponential(-gate)), silu = gate * chance;
            if (!gradient) {
                put(out, n * F + f, silu * up, low);
                continue;
            }
            Vec g = get(gradient, n * F + f, low);
            put(out, n * 2 * F + f, g * up * (chance + silu * (1.f - chance)), low);
            put(out, n * 2 * F + F + f, g * silu, low);
        }
}

int klype_swiglu(const void *in, const void *gradient, void *out, int64_t N, int64_t F, int low, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Span span = mine(N);
        low ? swiglu(in, gradient, out, F, span, 1) : swiglu(in, gradient, out, F, span, 0);
    }
    return 0;
}

/* Cross-entropy: loss = weight * -log p(target); the logits become their own gradient, weight * (p - 1[target]) */

INLINE void entropy(void *logits, const int64_t *targets, const float *weights, float *loss, int64_t V, int wants,
                    Span span, float *row, int low) {
    int64_t whole = V / W * W;
    for (int64_t n = span.from; n < span.to; n++) {
        int64_t at = n * V;
        for (int64_t v = whole; v < whole + W; v++) row[v] = v < V ? get1(logits, at + v, low) : -INFINITY;
        Vec most = *(Vec *)(row + whole);
        for (int64_t v = 0; v < whole; v += W) {
            Vec x = get(logits, at + v, low);
            *(Vec *)(row + v) = x;
            most = larger(most, x);
        }
        float top = greatest(most), aim = row[targets[n]];
        Vec sums = {0};
        for (int64_t v = 0; v < whole + W; v += W) {
            Vec e = exponential(*(Vec *)(row + v) - top);
            *(Vec *)(row + v) = e;
            sums += e;
        }
        float sum = total(sums);
        loss[n] = weights[n] * (logf(sum) + (top - aim));
        if (!wants) continue;
        float share = weights[n] / sum;
        for (int64_t v = 0; v < whole; v += W) put(logits, at + v, *(Vec *)(row + v) * share, low);
        for (int64_t v = whole; v < V; v++) put1(logits, at + v, row[v] * share, low);
        put1(logits, at + targets[n], row[targets[n]] * share - weights[n], low);
    }
}

int klype_entropy(void *logits, const int64_t *targets, const float *weights, float *loss, int64_t N, int64_t V,
                  int wants, int low, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *row = room(V + 2 * W);
        Span span = mine(N);
        if (!row) failed = 1;
        else if (low) entropy(logits, targets, weights, loss, V, wants, span, row, 1);
        else entropy(logits, targets, weights, loss, V, wants, span, row, 0);
        free(row);
    }
    return failed;
}

/* Causal attention of every text to itself: rows of q, k, v heads -> rows of mixed values. A piece stands behind its prefix: the
 * prefix's keys and values stay where they are while branch after branch takes the place behind them. */

typedef struct {
    const void *in;        /* [N, (H + 2 G) * K] */
    void *out;             /* [N, H * K] */
    float *spread;         /* [N, H]: the logarithm of the sum of e^score */
    const float *cos, *sin; /* [positions, K], the sign of the first half in sin; or NULL: no rotation */
    const void *out_gradient;
    void *in_gradient;
    Texts texts;
    int64_t H, G, K, longest;
} Attention;

/* Of one text and head; rows are filled up to whole panels with zeros. What is multiplied is in cells (vectors.h), C numbers
 * each, of which a row has KR. `stacked` cells are of C rows that follow one another; where C is 1 they are the rows. Keys and
 * values are by position, what only the rows of a piece have by the row's number in it. */
typedef struct {
    float *q, *k, *v, *g;                 /* rows: [P, KR] */
    float *q_stack, *k_stack, *v_stack, *g_stack; /* [P / C, KP] */
    float *across_k, *across_v;           /* [KR, PP] */
    float *weights, *slopes;              /* stacked: attention weights, and gradients of the scores: [P / C, PP] */
    float *weights_now, *slopes_now;      /* those of a block, as float: [BLOCK, PP]; where C is 1, parts of the former */
    float *rows_now;                      /* one of the two as rows: [BLOCK, PP / C] */
    float *key_gradient, *value_gradient; /* float: [P, KP] */
    float *own;                           /* float: [BLOCK, KP] */
    int64_t KP, KR, PP;
} Scratch;

typedef struct { float *memory; int64_t taken; } Store;

static float *taken(Store *store, int64_t floats) { /* multiples of 64 bytes; NULL while only the size is computed */
    float *from = store->memory ? store->memory + store->taken : NULL;
    store->taken += floats;
    return from;
}

static Scratch divided(const Attention *a, Store *at, int cell) {
    int64_t KP = padded(a->K), PP = padded(a->longest), P = PP + 2 * BLOCK, KR = KP / cell;
    Scratch s = {.KP = KP, .KR = KR, .PP = PP};
    float **rows[] = {&s.q, &s.k, &s.v, &s.g}, **stacks[] = {&s.q_stack, &s.k_stack, &s.v_stack, &s.g_stack};
    for (int i = 0; i < 4; i++) {
        *rows[i] = taken(at, P * KR);
        *stacks[i] = cell == 1 ? *rows[i] : taken(at, P / 2 * KP);
    }
    s.across_k = taken(at, KR * PP), s.across_v = taken(at, KR * PP);
    s.weights = taken(at, P / cell * PP), s.slopes = taken(at, P / cell * PP);
    if (cell == 2) s.weights_now = taken(at, BLOCK * PP), s.slopes_now = taken(at, BLOCK * PP), s.rows_now = taken(at, BLOCK * PP / 2);
    s.key_gradient = taken(at, P * KP), s.value_gradient = taken(at, P * KP), s.own = taken(at, BLOCK * KP);
    return s;
}

/* Rows of one head as cells: as fetch has them. */
INLINE void gather(const Scratch *z, const void *in, int64_t row, int64_t T, int64_t K, const float *cos, const float *sin,
                   float scale, float *out, int low) {
    if (CELL(low) == 1) fetch(in, row, T, K, cos, sin, scale, out, z->KP, low);
    else
        for (int64_t t = 0; t < T; t++) {
            const float *c = cos ? cos + t * K : NULL, *s = cos ? sin + t * K : NULL;
            fetch((const uint16_t *)in + t * row, row, 1, K, c, s, scale, z->own, z->KP, 1);
            for (int64_t k = 0; k < z->KP; k += W) put(out + t * z->KR, k, *(Vec *)(z->own + k), 1);
        }
}

/* Pairs of 16-bit rows as cells, an unpaired last one with zeros; `from` is even. */
INLINE void stacked(const float *rows, int64_t from, int64_t T, const Scratch *z, float *out, int low) {
    if (CELL(low) == 1) return;
    for (int64_t t = from; t < T; t += 2)
        for (int64_t k = 0; k < z->KP; k += W) {
            const uint16_t *row = (const uint16_t *)(rows + t * z->KR) + k;
            Halves first = *(const LooseHalves *)row, second = {0};
            if (t + 1 < T) second = *(const LooseHalves *)(row + z->KP);
            *(Vec *)(out + t / 2 * z->KP + k) = paired(first, second);
        }
}

/* The inverse of fetch, for gradients: rotated back, scaled and stored. */
INLINE void store(void *out, int64_t row, int64_t T, int64_t K, const float *cos, const float *sin, float scale,
                  float *from, int64_t KP, int low) {
    int64_t half = K / 2;
    for (int64_t t = 0; t < T; t++) {
        float *x = from + t * KP;
        if (cos)
            for (int64_t k = 0; k < half; k++) {
                float a = x[k], b = x[k + half];
                x[k] = a * cos[t * K + k] + b * sin[t * K + k + half];
                x[k + half] = b * cos[t * K + k + half] + a * sin[t * K + k];
            }
        for (int64_t k = 0; k < K; k += 8) put8(out, t * row + k, *(Eight *)(x + k) * scale, low);
    }
}

/* What forward and backward need of a head: rows of its piece, queries scaled, keys of a group fetched once. */
INLINE void heads(const Attention *a, const Scratch *z, Piece p, int64_t h, int backward, int low) {
    int64_t K = a->K, H = a->H, G = a->G, KR = z->KR, row = (H + 2 * G) * K, g = h / (H / G), at = p.before * KR, end = p.before + p.T;
    int64_t deep = K / CELL(low), even = p.before / 2 * 2;
    const float *cos = a->cos ? a->cos + p.before * K : NULL, *sin = a->cos ? a->sin + p.before * K : NULL;
    const char *in = (const char *)a->in + (low ? 2 : 4) * p.first * row;
    int64_t wide = (low ? 2 : 4) * K;
    gather(z, in + h * wide, row, p.T, K, cos, sin, 1.f / sqrtf((float)K), z->q, low);
    if (backward) stacked(z->q, 0, p.T, z, z->q_stack, low);
    if (h % (H / G)) return;
    gather(z, in + (H + g) * wide, row, p.T, K, cos, sin, 1.f, z->k + at, low);
    gather(z, in + (H + G + g) * wide, row, p.T, K, NULL, NULL, 1.f, z->v + at, low);
    turned(z->k, p.before, end, deep, KR, z->across_k, z->PP);
    if (backward) turned(z->v, p.before, end, deep, KR, z->across_v, z->PP);
    if (backward) stacked(z->k, even, end, z, z->k_stack, low);
    else stacked(z->v, even, end, z, z->v_stack, low);
}

/* The memory in which the block of rows from i on is computed as float. */
INLINE float *now(const Scratch *z, float *block, float *stack, int64_t i, int low) {
    return CELL(low) == 2 ? block : stack + i * z->PP;
}

/* The block as cells of rows, for products with what is stacked. */
INLINE const float *as_rows(const Scratch *z, const float *block, int64_t rows, int64_t columns, int low) {
    if (CELL(low) == 1) return block;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < columns; j += W) put(z->rows_now + r * z->PP / 2, j, *(const Vec *)(block + r * z->PP + j), 1);
    return z->rows_now;
}

/* Adds the block to the stacked cells. */
INLINE void pile(const Scratch *z, const float *block, float *stack, int64_t i, int64_t rows, int64_t columns, int low) {
    if (CELL(low) == 1) return;
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t j = 0; j < columns; j += W) {
            const float *row = block + r * z->PP + j;
            Halves first = halves(*(const Vec *)row), second = {0};
            if (r + 1 < rows) second = halves(*(const Vec *)(row + z->PP));
            *(Vec *)(stack + (i + r) / 2 * z->PP + j) = paired(first, second);
        }
}

INLINE int64_t cells(int64_t numbers, int low) { return (numbers + CELL(low) - 1) / CELL(low); }

INLINE void head_forward(const Attention *a, const Scratch *z, Piece p, int64_t h, int low) {
    int64_t K = a->K, KP = z->KP, PP = z->PP;
    int cell = CELL(low);
    heads(a, z, p, h, 0, low);
    for (int64_t i = 0; i < p.T; i += BLOCK) {
        int64_t rows = p.T - i < BLOCK ? p.T - i : BLOCK, seen = p.before + i, columns = padded(seen + rows);
        float sums[BLOCK], *weights = now(z, z->weights_now, z->weights, 0, low);
        product(z->q + i * z->KR, z->KR, 1, z->across_k, PP, weights, PP, K / cell, rows, columns, cell);
        for (int64_t r = 0; r < rows; r++) {
            float top = masked(weights + r * PP, seen + r, columns);
            sums[r] = weighed(weights + r * PP, columns, top);
            a->spread[(p.first + i + r) * a->H + h] = logf(sums[r]) + top;
        }
        const float *by_row = as_rows(z, weights, rows, columns, low);
        product(by_row, PP / cell, 1, z->v_stack, KP, z->own, KP, cells(seen + rows, low), rows, KP, cell);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < K; k += 8)
                put8(a->out, ((p.first + i + r) * a->H + h) * K + k, *(Eight *)(z->own + r * KP + k) / sums[r], low);
    }
}

INLINE void head_backward(const Attention *a, const Scratch *z, Piece p, int64_t h, int low) {
    int64_t K = a->K, H = a->H, G = a->G, KP = z->KP, KR = z->KR, PP = z->PP, before = p.before, end = before + p.T;
    int64_t row = (H + 2 * G) * K, wide = (low ? 2 : 4) * K, at = p.first * H + h;
    const char *out_gradient = (const char *)a->out_gradient + at * wide;
    char *in_gradient = (char *)a->in_gradient + (low ? 2 : 4) * p.first * row;
    float scale = 1.f / sqrtf((float)K);
    int cell = CELL(low);
    heads(a, z, p, h, 1, low);
    if (h % (H / G) == 0) {
        memset(z->key_gradient + before * KP, 0, (size_t)(p.T * KP) * sizeof(float));
        memset(z->value_gradient + before * KP, 0, (size_t)(p.T * KP) * sizeof(float));
    }
    gather(z, out_gradient, H * K, p.T, K, NULL, NULL, 1.f, z->g, low);
    stacked(z->g, 0, p.T, z, z->g_stack, low);
    for (int64_t i = 0; i < p.T; i += BLOCK) {
        int64_t rows = p.T - i < BLOCK ? p.T - i : BLOCK, seen = before + i, columns = padded(seen + rows);
        float *weights = now(z, z->weights_now, z->weights, i, low), *slopes = now(z, z->slopes_now, z->slopes, i, low);
        product(z->q + i * KR, KR, 1, z->across_k, PP, weights, PP, K / cell, rows, columns, cell);
        product(z->g + i * KR, KR, 1, z->across_v, PP, slopes, PP, K / cell, rows, columns, cell);
        for (int64_t r = 0; r < rows; r++) {
            int64_t n = at + (i + r) * H;
            Eight sums = {0};
            expected(a->out, (n + SOON * H) * K, K, low);
            for (int64_t k = 0; k < K; k += 8) sums += get8(a->out, n * K + k, low) * get8(out_gradient, (i + r) * H * K + k, low);
            float along = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
            masked(weights + r * PP, seen + r, columns);
            weighed(weights + r * PP, columns, a->spread[n]);
            for (int64_t j = 0; j < columns; j += W) {
                Vec *to = (Vec *)(slopes + r * PP + j);
                *to = *(Vec *)(weights + r * PP + j) * (*to - along);
            }
        }
        pile(z, weights, z->weights, i, rows, columns, low);
        pile(z, slopes, z->slopes, i, rows, columns, low);
        const float *by_row = as_rows(z, slopes, rows, columns, low);
        product(by_row, PP / cell, 1, z->k_stack, KP, z->own, KP, cells(seen + rows, low), rows, KP, cell);
        store(in_gradient + i * row * (low ? 2 : 4) + h * wide, row, rows, K, a->cos ? a->cos + seen * K : NULL,
              a->cos ? a->sin + seen * K : NULL, scale, z->own, KP, low);
    }
    for (int64_t j = 0, columns; j < end; j += columns) { /* blocks of the piece's own columns and of its rows coincide */
        int64_t left = (j < before ? before : end) - j, from = (j > before ? j - before : 0) / cell, deep = cells(p.T, low) - from;
        columns = left < BLOCK ? left : BLOCK;
        added(z->slopes + from * PP + j, 1, PP, z->q_stack + from * KP, KP, z->key_gradient + j * KP, KP, deep, columns, KP, cell);
        added(z->weights + from * PP + j, 1, PP, z->g_stack + from * KP, KP, z->value_gradient + j * KP, KP, deep, columns, KP, cell);
    }
}

/* Stores the gradients of a piece's keys and values, after all heads and all of its branches have been added. */
INLINE void store_keys(const Attention *a, const Scratch *z, Piece p, int64_t g, int low) {
    int64_t K = a->K, row = (a->H + 2 * a->G) * K, wide = (low ? 2 : 4) * K, at = p.before * z->KP;
    const float *cos = a->cos ? a->cos + p.before * K : NULL, *sin = a->cos ? a->sin + p.before * K : NULL;
    char *to = (char *)a->in_gradient + (low ? 2 : 4) * p.first * row + (a->H + g) * wide;
    store(to, row, p.T, K, cos, sin, 1.f, z->key_gradient + at, z->KP, low);
    store(to + a->G * wide, row, p.T, K, NULL, NULL, 1.f, z->value_gradient + at, z->KP, low);
}

INLINE void attention(const Attention *a, const Scratch *z, Span tree, int64_t g, int backward, int low) {
    int64_t each = a->H / a->G;
    for (int64_t s = tree.from; s < tree.to; s++) {
        Piece p = piece(&a->texts, tree, s);
        for (int64_t h = g * each; h < (g + 1) * each; h++)
            if (backward) head_backward(a, z, p, h, low);
            else head_forward(a, z, p, h, low);
        if (backward && s > tree.from) store_keys(a, z, p, g, low);
    }
    if (backward) store_keys(a, z, piece(&a->texts, tree, tree.from), g, low);
}

INLINE int attentions(const Attention *a, Span span, int backward, int low) {
    Store store = {0};
    divided(a, &store, CELL(low));
    float *memory = room(store.taken);
    if (!memory) return 1;
    store = (Store){memory, 0};
    Scratch z = divided(a, &store, CELL(low));
    for (int64_t i = span.from; i < span.to; i++)
        for (int64_t g = 0; g < a->G; g++) attention(a, &z, pieces(&a->texts, i), g, backward, low);
    free(memory);
    return 0;
}

int klype_attention(const Attention *a, int backward, int low, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        Span span = mine(a->texts.number);
        if (backward) failed = low ? attentions(a, span, 1, 1) : attentions(a, span, 1, 0);
        else failed = low ? attentions(a, span, 0, 1) : attentions(a, span, 0, 0);
    }
    return failed;
}
