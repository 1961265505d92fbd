/* The parts of a training step between its matrix products, each in one pass over memory, forward and backward:
 * klype.model.fused calls them and says what they compute.
 *
 * Texts lie end to end as N rows: piece s has the rows starts[s] .. starts[s+1]. A text is one piece, or a tree of them: a
 * stem, and branches that each go on from its end and do not see one another; tree i has the pieces trees[i] .. trees[i+1].
 * Numbers in memory are float or (low) bfloat16, sums are always float. Shapes: D width, H query heads, G key heads, K head
 * width, F hidden width, J taps, V vocabulary, P positions of a text. D and F are multiples of 16, K of 8. Trees are divided
 * among threads by their number alone, and what threads sum is added in their order, so that equal calls give equal bits. */
#include "vectors.h"

typedef struct {
    const int64_t *starts, *trees; /* trees: NULL where every piece is a text of its own */
    int64_t number;                /* of trees */
} Texts;

typedef struct { int64_t first, T, before; } Piece; /* its first row, its rows, the positions of the stem before it */

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
    float *weight_gradient; /* [threads, 1 + J, D], zeros at first: the first thread's are then the weight's and the taps' */
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

/* What the convolution hands back to row t, and to its taps, from the rows that follow it in the rows of its piece, and in
 * the branches where it is near the end of their stem. */
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

/* SwiGLU: silu(gate) * up, of rows that hold gate and up */

INLINE void swiglu(const void *in, const void *gradient, void *out, int64_t F, Span span, int low) {
    for (int64_t n = span.from; n < span.to; n++)
        for (int64_t f = 0; f < F; f += W) {
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

void klype_swiglu(const void *in, const void *gradient, void *out, int64_t N, int64_t F, int low, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Span span = mine(N);
        low ? swiglu(in, gradient, out, F, span, 1) : swiglu(in, gradient, out, F, span, 0);
    }
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

/* Causal attention of every text to itself: rows of q, k, v heads -> rows of mixed values. A piece stands behind its stem: the
 * stem's keys and values stay where they are while branch after branch takes the place behind them. */

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

typedef struct { /* of one text and head, by position, all as float; rows are padded to whole panels with zeros */
    float *q, *k, *v, *g, *key_gradient, *value_gradient; /* [P, KP] */
    float *across_k, *across_v;                           /* [KP, PP]: transposed */
    float *p, *s; /* [P, PP]: weights, and the gradient of the scores */
    float *own; /* [BLOCK, KP] */
    int64_t KP, PP;
} Scratch;

static int64_t scratch_size(const Attention *a) {
    int64_t KP = padded(a->K), PP = padded(a->longest), rows = padded(a->longest) + BLOCK;
    return 6 * rows * KP + 2 * KP * PP + 2 * rows * PP + BLOCK * KP;
}

static Scratch divided(const Attention *a, float *memory) {
    int64_t KP = padded(a->K), PP = padded(a->longest), rows = padded(a->longest) + BLOCK, own = rows * KP;
    Scratch s = {.KP = KP, .PP = PP};
    s.q = memory, s.k = s.q + own, s.v = s.k + own, s.g = s.v + own;
    s.key_gradient = s.g + own, s.value_gradient = s.key_gradient + own;
    s.across_k = s.value_gradient + own, s.across_v = s.across_k + KP * PP;
    s.p = s.across_v + KP * PP, s.s = s.p + rows * PP, s.own = s.s + rows * PP;
    return s;
}

/* The way back: of gradients, turned the other way. */
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
INLINE void heads(const Attention *a, const Scratch *z, Piece p, int64_t h, int low) {
    int64_t K = a->K, H = a->H, G = a->G, KP = z->KP, row = (H + 2 * G) * K, g = h / (H / G), at = p.before * KP;
    const float *cos = a->cos ? a->cos + p.before * K : NULL, *sin = a->cos ? a->sin + p.before * K : NULL;
    const char *in = (const char *)a->in + (low ? 2 : 4) * p.first * row;
    int64_t wide = (low ? 2 : 4) * K;
    fetch(in + h * wide, row, p.T, K, cos, sin, 1.f / sqrtf((float)K), z->q + at, KP, low);
    if (h % (H / G)) return;
    fetch(in + (H + g) * wide, row, p.T, K, cos, sin, 1.f, z->k + at, KP, low);
    fetch(in + (H + G + g) * wide, row, p.T, K, NULL, NULL, 1.f, z->v + at, KP, low);
    turned(z->k, p.before, p.before + p.T, K, KP, z->across_k, z->PP);
}

INLINE void head_forward(const Attention *a, const Scratch *z, Piece p, int64_t h, int low) {
    int64_t K = a->K;
    heads(a, z, p, h, low);
    for (int64_t i = 0; i < p.T; i += BLOCK) {
        int64_t rows = p.T - i < BLOCK ? p.T - i : BLOCK, seen = p.before + i, columns = padded(seen + rows);
        float sums[BLOCK];
        product(z->q + seen * z->KP, z->KP, 1, z->across_k, z->PP, z->p, z->PP, K, rows, columns);
        for (int64_t r = 0; r < rows; r++) {
            float top = masked(z->p + r * z->PP, seen + r, columns);
            sums[r] = weighed(z->p + r * z->PP, columns, top);
            a->spread[(p.first + i + r) * a->H + h] = logf(sums[r]) + top;
        }
        product(z->p, z->PP, 1, z->v, z->KP, z->own, z->KP, seen + rows, rows, z->KP);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < K; k += 8)
                put8(a->out, ((p.first + i + r) * a->H + h) * K + k, *(Eight *)(z->own + r * z->KP + k) / sums[r], low);
    }
}

INLINE void head_backward(const Attention *a, const Scratch *z, Piece p, int64_t h, int low) {
    int64_t K = a->K, H = a->H, G = a->G, KP = z->KP, PP = z->PP, before = p.before, end = before + p.T;
    int64_t row = (H + 2 * G) * K, wide = (low ? 2 : 4) * K, at = p.first * H + h;
    const char *out_gradient = (const char *)a->out_gradient + at * wide;
    char *in_gradient = (char *)a->in_gradient + (low ? 2 : 4) * p.first * row;
    float scale = 1.f / sqrtf((float)K);
    heads(a, z, p, h, low);
    if (h % (H / G) == 0) {
        turned(z->v, before, end, K, KP, z->across_v, PP);
        memset(z->key_gradient + before * KP, 0, (size_t)(p.T * KP) * sizeof(float));
        memset(z->value_gradient + before * KP, 0, (size_t)(p.T * KP) * sizeof(float));
    }
    fetch(out_gradient, H * K, p.T, K, NULL, NULL, 1.f, z->g + before * KP, KP, low);
    for (int64_t i = before; i < end; i += BLOCK) {
        int64_t rows = end - i < BLOCK ? end - i : BLOCK, columns = padded(i + rows);
        float *weights = z->p + i * PP, *scores = z->s + i * PP;
        product(z->q + i * KP, KP, 1, z->across_k, PP, weights, PP, K, rows, columns);
        product(z->g + i * KP, KP, 1, z->across_v, PP, scores, PP, K, rows, columns);
        for (int64_t r = 0; r < rows; r++) {
            int64_t n = at + (i - before + r) * H;
            Eight sums = {0};
            for (int64_t k = 0; k < K; k += 8) sums += get8(a->out, n * K + k, low) * *(Eight *)(z->g + (i + r) * KP + k);
            float along = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
            masked(weights + r * PP, i + r, columns);
            weighed(weights + r * PP, columns, a->spread[n]);
            for (int64_t j = 0; j < columns; j += W) {
                Vec *to = (Vec *)(scores + r * PP + j);
                *to = *(Vec *)(weights + r * PP + j) * (*to - along);
            }
        }
        product(scores, PP, 1, z->k, KP, z->own, KP, i + rows, rows, KP);
        store(in_gradient + (i - before) * row * (low ? 2 : 4) + h * wide, row, rows, K, a->cos ? a->cos + i * K : NULL,
              a->cos ? a->sin + i * K : NULL, scale, z->own, KP, low);
    }
    for (int64_t j = 0, rows; j < end; j += rows) { /* blocks of the piece's own columns begin where those of its rows do */
        int64_t left = (j < before ? before : end) - j, from = j > before ? j : before;
        rows = left < BLOCK ? left : BLOCK;
        added(z->s + from * PP + j, 1, PP, z->q + from * KP, KP, z->key_gradient + j * KP, KP, end - from, rows, KP);
        added(z->p + from * PP + j, 1, PP, z->g + from * KP, KP, z->value_gradient + j * KP, KP, end - from, rows, KP);
    }
}

/* The gradients of a piece's keys and values, when all heads, and all of its branches, have added theirs. */
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

int klype_attention(const Attention *a, int backward, int low, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *memory = room(scratch_size(a));
        Span span = mine(a->texts.number);
        if (!memory) failed = 1;
        else {
            Scratch z = divided(a, memory);
            for (int64_t i = span.from; i < span.to; i++)
                for (int64_t g = 0; g < a->G; g++) {
                    Span tree = pieces(&a->texts, i);
                    if (backward) low ? attention(a, &z, tree, g, 1, 1) : attention(a, &z, tree, g, 1, 0);
                    else low ? attention(a, &z, tree, g, 0, 1) : attention(a, &z, tree, g, 0, 0);
                }
        }
        free(memory);
    }
    return failed;
}
