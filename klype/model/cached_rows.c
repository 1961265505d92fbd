/* One new token of every row of a cache, between the matrix products; called by klype.model.compiled.
 *
 * The text of a row is a part that it shares with other rows (shared KV) and a part of its own. Rows that read one shared
 * text form a table: its keys are transposed once for all of them, and their scores are products of small matrices. The
 * result of a row depends neither on the other rows of its table nor on the number of threads.
 *
 * Shapes: R rows, H query heads, G key heads, K head width (a multiple of 8), S own positions, J taps, D width. */
#include "vectors.h"

typedef struct {
    const void *in;               /* [R, (H + 2 G) * K]: queries, keys, values */
    void *out;                    /* [R, H * K] */
    const float *q_norm, *k_norm; /* [K], or NULL */
    const float *cos, *sin;       /* [R, K], or NULL: no rotation */
    void *keys, *values;          /* [R, G, S, K]: the new token's are stored */
    const int64_t *own, *shared;  /* [R]: number of positions before the new one */
    const int64_t *rows, *starts; /* [R]: rows by table; table t has rows[starts[t]] .. rows[starts[t + 1] - 1] */
    const void *const *shared_keys, *const *shared_values; /* [tables]: [G, .., K] */
    const int64_t *strides;       /* [tables]: elements from one head of shared KV to the next */
    int64_t tables, H, G, K, S;
    int64_t most, longest, widest; /* largest number of a table's rows, own positions (with the new one), shared positions */
    float eps;
} Rows;

typedef struct { /* all as float */
    float *keys, *values, *across;             /* of shared KV: [P, KP], [P, KP], [KP, PP] */
    float *own_keys, *own_values, *own_across; /* of a row: [O, KP], [O, KP], [KP, OP] */
    float *q, *out, *p;                        /* of all query heads of a table's rows: [M, KP], [M, KP], [M, PP + OP] */
    float *sums;                               /* [M] */
    int64_t KP, wide;
} Desk;

static int64_t desk_size(const Rows *a) {
    int64_t KP = padded(a->K), P = padded(a->widest), O = padded(a->longest), M = a->most * (a->H / a->G) + BLOCK;
    return 3 * KP * (P + O) + M * (2 * KP + P + O) + padded(M);
}

static Desk desk(const Rows *a, float *memory) {
    int64_t KP = padded(a->K), P = padded(a->widest), O = padded(a->longest), M = a->most * (a->H / a->G) + BLOCK;
    Desk d = {.KP = KP, .wide = P + O};
    d.keys = memory, d.values = d.keys + P * KP, d.across = d.values + P * KP;
    d.own_keys = d.across + KP * P, d.own_values = d.own_keys + O * KP, d.own_across = d.own_values + O * KP;
    d.q = d.own_across + KP * O, d.out = d.q + M * KP, d.p = d.out + M * KP, d.sums = d.p + M * (P + O);
    return d;
}

/* One head of a new token: normed, rotated, scaled. */
INLINE void new_head(const Rows *a, int64_t row, int64_t head, const float *weight, float scale, float *to, int64_t KP, int low) {
    int64_t K = a->K;
    const char *from = (const char *)a->in + (low ? 2 : 4) * (row * (a->H + 2 * a->G) + head) * K;
    fetch(from, K, 1, K, NULL, NULL, 1.f, to, KP, low);
    if (weight) {
        float square = 0;
        for (int64_t k = 0; k < K; k++) square += to[k] * to[k];
        float by = 1.f / sqrtf(square / (float)K + a->eps);
        for (int64_t k = 0; k < K; k++) to[k] *= by * weight[k];
    }
    if (a->cos) rotated(to, K, a->cos + row * K, a->sin + row * K);
    for (int64_t k = 0; k < K; k++) to[k] *= scale;
}

/* Stores the new key and value in the cache, then fetches all of the row's own. */
INLINE void recall(const Rows *a, const Desk *d, int64_t row, int64_t g, int low) {
    int64_t K = a->K, own = a->own[row], at = (row * a->G + g) * a->S * K, size = low ? 2 : 4;
    char *keys = (char *)a->keys + size * at, *values = (char *)a->values + size * at;
    const char *value = (const char *)a->in + size * (row * (a->H + 2 * a->G) + a->H + a->G + g) * K;
    new_head(a, row, a->H + g, a->k_norm, 1.f, d->own_keys, d->KP, low);
    for (int64_t k = 0; k < K; k += 8) put8(keys, own * K + k, *(Eight *)(d->own_keys + k), low);
    memcpy(values + size * own * K, value, (size_t)(size * K));
    fetch(keys, K, own + 1, K, NULL, NULL, 1.f, d->own_keys, d->KP, low);
    fetch(values, K, own + 1, K, NULL, NULL, 1.f, d->own_values, d->KP, low);
    turned(d->own_keys, 0, own + 1, K, d->KP, d->own_across, padded(own + 1));
}

INLINE void table(const Rows *a, const Desk *d, int64_t t, int64_t g, int low) {
    int64_t K = a->K, KP = d->KP, each = a->H / a->G, first = a->starts[t], seats = a->starts[t + 1] - first;
    int64_t heads = seats * each, P = 0, wide = d->wide, size = low ? 2 : 4;
    for (int64_t s = first; s < first + seats; s++) P = a->shared[a->rows[s]] > P ? a->shared[a->rows[s]] : P;
    int64_t PP = padded(P);
    if (P) {
        int64_t shift = size * g * a->strides[t];
        fetch((const char *)a->shared_keys[t] + shift, K, P, K, NULL, NULL, 1.f, d->keys, KP, low);
        fetch((const char *)a->shared_values[t] + shift, K, P, K, NULL, NULL, 1.f, d->values, KP, low);
        turned(d->keys, 0, P, K, KP, d->across, PP);
    }
    for (int64_t i = 0; i < heads; i++)
        new_head(a, a->rows[first + i / each], g * each + i % each, a->q_norm, 1.f / sqrtf((float)K), d->q + i * KP, KP, low);
    for (int64_t i = 0; i < heads; i += BLOCK) {
        int64_t some = heads - i < BLOCK ? heads - i : BLOCK;
        product(d->q + i * KP, KP, 1, d->across, PP, d->p + i * wide, wide, K, some, PP, 1);
    }
    for (int64_t s = 0; s < seats; s++) {
        int64_t row = a->rows[first + s], own = a->own[row], columns = padded(own + 1);
        recall(a, d, row, g, low);
        for (int64_t i = s * each; i < (s + 1) * each; i += BLOCK) {
            int64_t some = (s + 1) * each - i < BLOCK ? (s + 1) * each - i : BLOCK;
            float *p = d->p + i * wide;
            product(d->q + i * KP, KP, 1, d->own_across, columns, p + PP, wide, K, some, columns, 1);
            for (int64_t r = 0; r < some; r++, p += wide) {
                float before = masked(p, a->shared[row] - 1, PP), top = masked(p + PP, own, columns);
                d->sums[i + r] = weighed(p, PP + columns, before > top ? before : top);
            }
            product(d->p + i * wide + PP, wide, 1, d->own_values, KP, d->out + i * KP, KP, own + 1, some, KP, 1);
        }
    }
    for (int64_t i = 0; P && i < heads; i += BLOCK) {
        int64_t some = heads - i < BLOCK ? heads - i : BLOCK;
        added(d->p + i * wide, wide, 1, d->values, KP, d->out + i * KP, KP, P, some, KP, 1);
    }
    for (int64_t i = 0; i < heads; i++) {
        int64_t at = (a->rows[first + i / each] * a->H + g * each + i % each) * K;
        for (int64_t k = 0; k < K; k += 8) put8(a->out, at + k, *(Eight *)(d->out + i * KP + k) / d->sums[i], low);
    }
}

/* Returns 1 if memory cannot be allocated, else 0. */
int klype_rows_attend(const Rows *a, int low, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *memory = room(desk_size(a));
        Desk d = memory ? desk(a, memory) : (Desk){0};
        if (!memory) failed = 1;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < a->tables * a->G; i++) {
            if (!memory) continue;
            if (low) table(a, &d, i / a->G, i % a->G, 1);
            else table(a, &d, i / a->G, i % a->G, 0);
        }
        free(memory);
    }
    return failed;
}

/* Stores the new inputs [R, D] in the cache [R, J + S, D]; u_t = x_t + sum over j of taps_j * x_{t-j}. */
INLINE void convolve(const void *x, const void *taps, void *inputs, void *u, const int64_t *own, int64_t J, int64_t S,
                     int64_t D, Span span, int low) {
    for (int64_t r = span.from; r < span.to; r++) {
        int64_t at = (r * (J + S) + J + own[r]) * D;
        for (int64_t d = 0; d < D; d += 8) {
            Eight sum = get8(x, r * D + d, low);
            put8(inputs, at + d, sum, low);
            for (int64_t j = 1; j <= J; j++) sum += get8(taps, (j - 1) * D + d, low) * get8(inputs, at - j * D + d, low);
            put8(u, r * D + d, sum, low);
        }
    }
}

int klype_rows_convolve(const void *x, const void *taps, void *inputs, void *u, const int64_t *own, int64_t R, int64_t J,
                        int64_t S, int64_t D, int low, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Span span = mine(R);
        if (low) convolve(x, taps, inputs, u, own, J, S, D, span, 1);
        else convolve(x, taps, inputs, u, own, J, S, D, span, 0);
    }
    return 0;
}
