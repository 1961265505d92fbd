/* The parts of a training step between its matrix products, each in one pass over memory, forward and backward:
 * klype.model.fused calls them and says what they compute.
 *
 * Texts lie end to end as N rows: text s has the rows starts[s] .. starts[s+1]. Numbers in memory are float or (low)
 * bfloat16, sums are always float. Shapes: D width, H query heads, G key heads, K head width, F hidden width, J taps,
 * V vocabulary, P positions of a text. D and F are multiples of 16, K of 8. Texts are divided among threads by their number
 * alone, and what threads sum is added in their order, so that equal calls give equal bits. */
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define W 16
#else
#define W 8
#endif
#define PANEL (2 * W) /* columns of a product that are computed at once */
#define BLOCK 6       /* and its rows */
#define INLINE static inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(4 * W)));
typedef uint32_t Bits __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef float Loose __attribute__((vector_size(4 * W), aligned(4), may_alias)); /* at any address */
typedef uint16_t LooseHalves __attribute__((vector_size(2 * W), aligned(2), may_alias));

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias)); /* heads are multiples of eight wide */
typedef uint32_t EightBits __attribute__((vector_size(32)));
typedef uint16_t EightHalves __attribute__((vector_size(16), aligned(2), may_alias));

typedef struct { int64_t from, to; } Span;

INLINE Vec all(float x) { return x - (Vec){0}; }

INLINE Vec get(const void *base, int64_t i, int low) {
    if (!low) return *(const Loose *)((const float *)base + i);
    return (Vec)(__builtin_convertvector(*(const LooseHalves *)((const uint16_t *)base + i), Bits) << 16);
}

INLINE float get1(const void *base, int64_t i, int low) {
    if (!low) return ((const float *)base)[i];
    union { uint32_t u; float f; } x = {(uint32_t)((const uint16_t *)base)[i] << 16};
    return x.f;
}

INLINE Eight get8(const void *base, int64_t i, int low) {
    if (!low) return *(const Eight *)((const float *)base + i);
    return (Eight)(__builtin_convertvector(*(const EightHalves *)((const uint16_t *)base + i), EightBits) << 16);
}

INLINE void put8(void *base, int64_t i, Eight v, int low) {
    if (!low) {
        *(Eight *)((float *)base + i) = v;
        return;
    }
    EightBits u = (EightBits)v, nan = (EightBits)(v != v);
    u = ((u + 0x7fff + ((u >> 16) & 1)) >> 16 & ~nan) | (0x7fc0 & nan);
    *(EightHalves *)((uint16_t *)base + i) = __builtin_convertvector(u, EightHalves);
}

INLINE uint16_t halved(float value) { /* to the nearest, ties to even; a NaN stays one */
    union { float f; uint32_t u; } x = {value};
    return value != value ? 0x7fc0 : (uint16_t)((x.u + 0x7fff + ((x.u >> 16) & 1)) >> 16);
}

INLINE void put(void *base, int64_t i, Vec v, int low) {
    if (!low) {
        *(Loose *)((float *)base + i) = v;
        return;
    }
    Bits u = (Bits)v, nan = (Bits)(v != v);
    u = ((u + 0x7fff + ((u >> 16) & 1)) >> 16 & ~nan) | (0x7fc0 & nan);
    *(LooseHalves *)((uint16_t *)base + i) = __builtin_convertvector(u, Halves);
}

INLINE void put1(void *base, int64_t i, float v, int low) {
    if (low) ((uint16_t *)base)[i] = halved(v);
    else ((float *)base)[i] = v;
}

INLINE float total(Vec v) { /* as a tree */
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#endif
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}

INLINE float greatest(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#endif
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
    return v[0];
}

INLINE Vec chosen(Ints which, Vec a, Vec b) { return (Vec)((which & (Ints)a) | (~which & (Ints)b)); }

INLINE Vec larger(Vec a, Vec b) { return chosen(a > b, a, b); }

/* e^x to 2e-7: 2^n times a Taylor series within half a factor of 2. Below -87 it is 0. */
INLINE Vec exponential(Vec x) {
#if defined(__AVX512F__)
    __mmask16 stays = _mm512_cmp_ps_mask((__m512)x, (__m512)all(-87.f), _CMP_NLT_UQ); /* a NaN does */
    Vec n = (Vec)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
#else
    Ints gone = x < -87.f;
    x = chosen(gone, all(-87.f), chosen(x > 88.f, all(88.f), x));
    Vec shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f; /* 1.5 * 2^23: rounds to a whole number */
#endif
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec e = 1.f + r * (1.f + r * (1.f / 2 + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 + r * (1.f / 720))))));
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_scalef_ps(stays, (__m512)e, (__m512)n); /* tiny ones cost a hundred times as much */
#else
    Ints power = (__builtin_convertvector(chosen(n == n, n, all(0.f)), Ints) + 127) << 23;
    return chosen(gone, all(0.f), e * (Vec)power);
#endif
}

static int me(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static Span mine(int64_t n) { /* this thread's part of n things */
    int64_t threads = 1;
#ifdef _OPENMP
    threads = omp_get_num_threads();
#endif
    Span span = {n * me() / threads, n * (me() + 1) / threads};
    return span;
}

static float *room(int64_t floats) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, (size_t)(floats + 64) * sizeof(float)) ? NULL : memory;
}

/* Norm and convolution: x = x + delta; n = x / rms(x) * weight; u_t = n_t + sum over j of taps_j * n_{t-j} */

typedef struct {
    const void *x, *delta, *weight, *taps; /* delta and taps may be NULL */
    void *sum, *u;                         /* sum: x + delta, where there is a delta */
    float *scale;                          /* [N]: 1 / rms */
    const void *sum_gradient, *u_gradient; /* the first may be NULL */
    void *x_gradient;
    float *weight_gradient; /* [threads, 1 + J, D], zeros at first: the first thread's are then the weight's and the taps' */
    const int64_t *starts;
    int64_t texts, D, J;
    float eps;
} Norm;

INLINE void norm_forward(const Norm *n, Span span, float *ring, int low) {
    int64_t D = n->D, J = n->J;
    for (int64_t s = span.from; s < span.to; s++)
        for (int64_t t = n->starts[s]; t < n->starts[s + 1]; t++) {
            int64_t at = t * D, age = t - n->starts[s];
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

INLINE void norm_backward(const Norm *n, Span span, float *sums, float *own, int low) {
    int64_t D = n->D, J = n->J;
    for (int64_t s = span.from; s < span.to; s++)
        for (int64_t t = n->starts[s]; t < n->starts[s + 1]; t++) {
            int64_t at = t * D, left = n->starts[s + 1] - 1 - t, taps = left < J ? left : J;
            float scale = n->scale[t];
            Vec along = {0};
            for (int64_t d = 0; d < D; d += W) {
                Vec weight = get(n->weight, d, low), unit = get(n->x, at + d, low) * scale, normed = unit * weight;
                Vec g = get(n->u_gradient, at + d, low);
                for (int64_t j = 1; j <= taps; j++) {
                    Vec later = get(n->u_gradient, at + j * D + d, low);
                    g += get(n->taps, (j - 1) * D + d, low) * later;
                    *(Vec *)(sums + j * D + d) += later * normed;
                }
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

int klype_norm(const Norm *n, int backward, int low, int threads) {
    int failed = 0;
    int64_t sums = (1 + n->J) * n->D;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *own = room((n->J + 1) * n->D);
        Span span = mine(n->texts);
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

/* Causal attention of every text to itself: rows of q, k, v heads -> rows of mixed values */

typedef struct {
    const void *in;        /* [N, (H + 2 G) * K] */
    void *out;             /* [N, H * K] */
    float *spread;         /* [N, H]: the logarithm of the sum of e^score */
    const float *cos, *sin; /* [positions, K], the sign of the first half in sin; or NULL: no rotation */
    const void *out_gradient;
    void *in_gradient;
    const int64_t *starts;
    int64_t texts, H, G, K, longest;
} Attention;

typedef struct { /* of one text and head, all as float; rows are padded to whole panels with zeros */
    float *q, *k, *v, *g, *key_gradient, *value_gradient; /* [P, KP] */
    float *across_k, *across_v;                           /* [KP, PP]: transposed */
    float *p, *s; /* [P, PP]: weights, and the gradient of the scores */
    float *own; /* [BLOCK, KP] */
    int64_t KP, PP;
} Scratch;

/* c[R, PANEL] = (add: c +) the sum over d of a[r * a_row + d * a_column] * b[d * b_row ..]. */
INLINE void tile(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                 int64_t c_row, int64_t depth, int add, int R) {
    Vec sum[BLOCK][2];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 2; v++) sum[r][v] = add ? *(Vec *)(c + r * c_row + v * W) : (Vec){0};
    for (int64_t d = 0; d < depth; d++) {
        Vec left = *(const Vec *)(b + d * b_row), right = *(const Vec *)(b + d * b_row + W);
        for (int r = 0; r < R; r++) {
            float x = a[r * a_row + d * a_column];
            sum[r][0] += x * left;
            sum[r][1] += x * right;
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 2; v++) *(Vec *)(c + r * c_row + v * W) = sum[r][v];
}

/* The same over a number of columns that is a multiple of PANEL; rows are at most BLOCK. */
INLINE void product_or_sum(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                           int64_t c_row, int64_t depth, int64_t rows, int64_t columns, int add) {
    for (int64_t n = 0; n < columns; n += PANEL)
        switch (rows) {
#define CASE(R) case R: tile(a, a_row, a_column, b + n, b_row, c + n, c_row, depth, add, R); break
            CASE(1);
            CASE(2);
            CASE(3);
            CASE(4);
            CASE(5);
            CASE(6);
#undef CASE
        }
}

static void product(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                    int64_t c_row, int64_t depth, int64_t rows, int64_t columns) {
    product_or_sum(a, a_row, a_column, b, b_row, c, c_row, depth, rows, columns, 0);
}

static void added(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                  int64_t c_row, int64_t depth, int64_t rows, int64_t columns) {
    product_or_sum(a, a_row, a_column, b, b_row, c, c_row, depth, rows, columns, 1);
}

INLINE int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

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

/* Rows of one head, rotated (where cos is given) and scaled. */
INLINE void fetch(const void *in, int64_t row, int64_t T, int64_t K, const float *cos, const float *sin, float scale,
                  float *out, int64_t KP, int low) {
    int64_t half = K / 2;
    for (int64_t t = 0; t < T; t++) {
        float *to = out + t * KP;
        for (int64_t k = 0; k < K; k += 8) *(Eight *)(to + k) = get8(in, t * row + k, low) * scale;
        for (int64_t k = K; k < KP; k += 8) *(Eight *)(to + k) = (Eight){0};
        if (cos)
            for (int64_t k = 0; k < half; k++) {
                float x = to[k], y = to[k + half];
                to[k] = x * cos[t * K + k] + y * sin[t * K + k];
                to[k + half] = y * cos[t * K + k + half] + x * sin[t * K + k + half];
            }
    }
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

/* out[8 rows of k][8 columns of t] = in[8 rows of t][8 columns of k] */
INLINE void turn8(const float *in, int64_t in_row, float *out, int64_t out_row) {
    Eight a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = *(const Eight *)(in + i * in_row);
    for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[i + 2 * j + 1] = __builtin_shufflevector(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        *(Eight *)(out + i * out_row) = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(Eight *)(out + (i + 4) * out_row) = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* [K, PP] of [T, KP], with zeros up to a whole panel. */
static void turned(float *in, int64_t T, int64_t K, int64_t KP, float *out, int64_t PP) {
    int64_t whole = padded(T);
    memset(in + T * KP, 0, (size_t)((whole - T) * KP) * sizeof(float));
    for (int64_t t = 0; t < whole; t += 8)
        for (int64_t k = 0; k < K; k += 8) turn8(in + t * KP + k, KP, out + k * PP + t, PP);
}

/* Masks the keys after the row's own; the greatest score that is left. */
INLINE float masked(float *row, int64_t own, int64_t columns) {
    static const float lanes[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int64_t j = 0;
    Vec most = all(-INFINITY);
    for (; j + W <= own + 1; j += W) most = larger(most, *(Vec *)(row + j));
    for (; j < columns; j += W) {
        Vec x = chosen(*(const Loose *)lanes > (float)(own - j), all(-INFINITY), *(Vec *)(row + j));
        *(Vec *)(row + j) = x;
        most = larger(most, x);
    }
    return greatest(most);
}

/* Scores become e^(score - top); their sum. */
INLINE float weighed(float *row, int64_t columns, float top) {
    Vec sums = {0};
    for (int64_t j = 0; j < columns; j += W) {
        Vec e = exponential(*(Vec *)(row + j) - top);
        *(Vec *)(row + j) = e;
        sums += e;
    }
    return total(sums);
}

/* What forward and backward need of a head: rows of its text, queries scaled, keys of a group fetched once. */
INLINE void heads(const Attention *a, const Scratch *z, int64_t s, int64_t h, int low) {
    int64_t T = a->starts[s + 1] - a->starts[s], K = a->K, H = a->H, G = a->G, row = (H + 2 * G) * K, g = h / (H / G);
    const char *in = (const char *)a->in + (low ? 2 : 4) * a->starts[s] * row;
    int64_t wide = (low ? 2 : 4) * K;
    fetch(in + h * wide, row, T, K, a->cos, a->sin, 1.f / sqrtf((float)K), z->q, z->KP, low);
    if (h % (H / G)) return;
    fetch(in + (H + g) * wide, row, T, K, a->cos, a->sin, 1.f, z->k, z->KP, low);
    fetch(in + (H + G + g) * wide, row, T, K, NULL, NULL, 1.f, z->v, z->KP, low);
    turned(z->k, T, K, z->KP, z->across_k, z->PP);
}

INLINE void head_forward(const Attention *a, const Scratch *z, int64_t s, int64_t h, int low) {
    int64_t first = a->starts[s], T = a->starts[s + 1] - first, K = a->K;
    heads(a, z, s, h, low);
    for (int64_t i = 0; i < T; i += BLOCK) {
        int64_t rows = T - i < BLOCK ? T - i : BLOCK, columns = padded(i + rows);
        float sums[BLOCK];
        product(z->q + i * z->KP, z->KP, 1, z->across_k, z->PP, z->p, z->PP, K, rows, columns);
        for (int64_t r = 0; r < rows; r++) {
            float top = masked(z->p + r * z->PP, i + r, columns);
            sums[r] = weighed(z->p + r * z->PP, columns, top);
            a->spread[(first + i + r) * a->H + h] = logf(sums[r]) + top;
        }
        product(z->p, z->PP, 1, z->v, z->KP, z->own, z->KP, i + rows, rows, z->KP);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < K; k += 8)
                put8(a->out, ((first + i + r) * a->H + h) * K + k, *(Eight *)(z->own + r * z->KP + k) / sums[r], low);
    }
}

INLINE void head_backward(const Attention *a, const Scratch *z, int64_t s, int64_t h, int low) {
    int64_t first = a->starts[s], T = a->starts[s + 1] - first, K = a->K, H = a->H, G = a->G, KP = z->KP, PP = z->PP;
    int64_t row = (H + 2 * G) * K, group = H / G, g = h / group, wide = (low ? 2 : 4) * K, at = first * H + h;
    const char *out_gradient = (const char *)a->out_gradient + at * wide;
    char *in_gradient = (char *)a->in_gradient + (low ? 2 : 4) * first * row;
    float scale = 1.f / sqrtf((float)K);
    heads(a, z, s, h, low);
    if (h % group == 0) turned(z->v, T, K, KP, z->across_v, PP);
    fetch(out_gradient, H * K, T, K, NULL, NULL, 1.f, z->g, KP, low);
    for (int64_t i = 0; i < T; i += BLOCK) {
        int64_t rows = T - i < BLOCK ? T - i : BLOCK, columns = padded(i + rows);
        float *p = z->p + i * PP, *q = z->s + i * PP;
        product(z->q + i * KP, KP, 1, z->across_k, PP, p, PP, K, rows, columns);
        product(z->g + i * KP, KP, 1, z->across_v, PP, q, PP, K, rows, columns);
        for (int64_t r = 0; r < rows; r++) {
            int64_t n = at + (i + r) * H;
            Eight sums = {0};
            for (int64_t k = 0; k < K; k += 8) sums += get8(a->out, n * K + k, low) * *(Eight *)(z->g + (i + r) * KP + k);
            float along = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
            masked(p + r * PP, i + r, columns);
            weighed(p + r * PP, columns, a->spread[n]);
            for (int64_t j = 0; j < columns; j += W) {
                Vec *to = (Vec *)(q + r * PP + j);
                *to = *(Vec *)(p + r * PP + j) * (*to - along);
            }
        }
        product(q, PP, 1, z->k, KP, z->own, KP, i + rows, rows, KP);
        store(in_gradient + i * row * (low ? 2 : 4) + h * wide, row, rows, K, a->cos ? a->cos + i * K : NULL,
              a->cos ? a->sin + i * K : NULL, scale, z->own, KP, low);
    }
    int add = h % group != 0;
    for (int64_t j = 0; j < T; j += BLOCK) {
        int64_t rows = T - j < BLOCK ? T - j : BLOCK;
        float *keys = z->key_gradient + j * KP, *values = z->value_gradient + j * KP;
        if (!add) memset(keys, 0, (size_t)(rows * KP) * sizeof(float)), memset(values, 0, (size_t)(rows * KP) * sizeof(float));
        added(z->s + j * PP + j, 1, PP, z->q + j * KP, KP, keys, KP, T - j, rows, KP);
        added(z->p + j * PP + j, 1, PP, z->g + j * KP, KP, values, KP, T - j, rows, KP);
    }
    if (h % group != group - 1) return;
    store(in_gradient + (H + g) * wide, row, T, K, a->cos, a->sin, 1.f, z->key_gradient, KP, low);
    store(in_gradient + (H + G + g) * wide, row, T, K, NULL, NULL, 1.f, z->value_gradient, KP, low);
}

int klype_attention(const Attention *a, int backward, int low, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *memory = room(scratch_size(a));
        Span span = mine(a->texts);
        if (!memory) failed = 1;
        else {
            Scratch z = divided(a, memory);
            for (int64_t s = span.from; s < span.to; s++)
                for (int64_t h = 0; h < a->H; h++) {
                    if (backward) low ? head_backward(a, &z, s, h, 1) : head_backward(a, &z, s, h, 0);
                    else low ? head_forward(a, &z, s, h, 1) : head_forward(a, &z, s, h, 0);
                }
        }
        free(memory);
    }
    return failed;
}
