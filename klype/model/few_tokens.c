/* A decoder's forward pass over a few new tokens. Matrices are 8-bit integers, bfloat16, float32, or blocks of a GGUF file;
 * the cache is bfloat16 or float32; all computation is float32. Called by klype.model.prepacked and klype.model.quantised.
 *
 * Every token has a row of the cache and a position in it; the row's keys and values up to there are read, its own
 * are stored. Threads are OpenMP's, which torch computes with too (two pools would wait for each other's cores), but
 * meet in a way of their own, five times a layer: OpenMP's may be told to sleep, which takes longer than the work.
 *
 * Matrices lie as oneDNN reads them: blocks of 64 rows, in a block column after column (bfloat16: two columns at a time),
 * in a column row after row, the last block filled up. So a matrix is read from its beginning to its end, and a token's
 * sums are added in the same order however many tokens and threads there are. In a GGUF file they lie row after row,
 * in blocks of 32 numbers with a scale each, which become float32 in registers: for them the same holds.
 *
 * Shapes: M tokens, D width, H query heads, G key heads, K head width, F hidden width, S positions of the cache. All
 * widths are multiples of 16. */
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST 64    /* threads */
#define TOGETHER 4 /* tokens that are multiplied with a matrix's rows together */
#define BLOCK 64   /* rows of a matrix that lie side by side */
#define UNIT 16    /* rows that a thread takes at least */
#define ROWS 8     /* rows of a matrix in a GGUF file that lie at equal distances */
#define TOLD 32    /* numbers that are dequantised together: a block of most types */
#define SUMS 16    /* sums that are computed together, in registers */
#define SOON 16    /* rows from now one is prefetched, which a processor does not predict */
#define NEAR 256   /* rows that fit in a core's cache */
#define PATIENCE 2000 /* spins before a waiting thread yields its core */

#if defined(__AVX512F__)
#include <immintrin.h>
#define W 16
#define WIDENED(w) ((Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(w)))))
#define BYTES(w) ((Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(w))))
#define SIXTEEN ((Vec){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#define LOW_BITS(i, ...) ((Vec)_mm512_permutexvar_ps((__m512i)(i), (__m512)scaled(SIXTEEN, __VA_ARGS__))) /* looked up */
#elif defined(__AVX2__)
#include <immintrin.h>
#define W 8
#define WIDENED(w) ((Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(w)))))
#define BYTES(w) ((Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(w))))
#else
#define W 8
typedef int8_t Bytes __attribute__((vector_size(W), aligned(1), may_alias));
typedef uint8_t Unsigned __attribute__((vector_size(W), aligned(1), may_alias));
typedef int16_t Shorts __attribute__((vector_size(2 * W))); /* GCC widens to twice the bits in vectors, to more one by one */
#define BYTES(w) __builtin_convertvector(__builtin_convertvector(*(const Unsigned *)(w), Shorts), Ints)
#define WIDENED(w) __builtin_convertvector( \
    __builtin_convertvector(__builtin_convertvector(*(const Bytes *)(w), Shorts), Ints), Vec)
#endif
#if !defined(LOW_BITS)
#define LOW_BITS(i, ...) scaled(__builtin_convertvector((i) & 15, Vec), __VA_ARGS__)
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef float Loose __attribute__((vector_size(4 * W), aligned(4), may_alias)); /* at any address */
typedef float Four __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint32_t Words __attribute__((vector_size(4 * W)));
typedef uint32_t LooseWords __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint16_t LooseHalves __attribute__((vector_size(2 * W), aligned(2), may_alias));

enum { INT8 = 8, BFLOAT16 = 16, FLOAT32 = 32 };
enum { Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, Q4_K = 12, Q6_K = 14 }; /* GGUF's own numbers */
#define EACH_TYPE(DO) DO(Q4_0) DO(Q4_1) DO(Q8_0) DO(Q4_K) DO(Q6_K)

/* ROWS rows in a GGUF file: the first, the bytes from one to the next, and the type of their blocks. */
typedef struct { const char *first; int64_t step, type; } Rows;

typedef struct {
    const char *weight; /* [out / 64, in, 64], bfloat16 [out / 64, in / 2, 64, 2] */
    const float *scale; /* [out] or NULL */
    const float *bias;  /* [out] or NULL */
    int64_t out, in, bits;
    const Rows *rows; /* [out / 8] where there is no weight */
} Matrix;

typedef struct {
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm; /* the last two may be NULL */
    Matrix qkv, down_from_heads, gate_up, down;
    void *keys, *values; /* [rows, G, S, K] */
} Layer;

typedef struct {
    const Layer *layers;
    const float *norm, *cos, *sin; /* cos and sin [window, K], or NULL: no rotation */
    int64_t count, D, H, G, K, F, S, kept; /* bits of a number in the cache */
    float eps;
} Model;

typedef struct {
    const Model *model;
    const Matrix *matrix;
    const float *in;
    float *x, *heads, *mixed, *hidden; /* [M, D], [M, H*K], [M, H*K], [M, F] */
    float *out;
    const int64_t *rows, *positions;
    int64_t M, scratch;
    _Atomic int arrived, phase;
} Job;

typedef struct {
    Job *job;
    int id, threads;
    float *own; /* a thread's scratch: normed [M, D], then scores or gates */
} Part;

static void relax(int *waited) {
    if (++*waited > PATIENCE) sched_yield();
#if defined(__x86_64__) || defined(__i386__)
    else __builtin_ia32_pause();
#endif
}

static void meet(const Part *p) {
    Job *job = p->job;
    int phase = atomic_load(&job->phase), waited = 0;
    if (atomic_fetch_add(&job->arrived, 1) + 1 == p->threads) {
        atomic_store(&job->arrived, 0);
        atomic_store(&job->phase, phase + 1);
    } else
        while (atomic_load(&job->phase) == phase) relax(&waited);
}

static inline float total(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
#endif
}

static inline Vec load(const float *x) { return *(const Loose *)x; }

/* W numbers of the cache, from the i-th on. */
static inline Vec recalled(const void *kept, int64_t i, int64_t bits) {
    if (bits == FLOAT32) return load((const float *)kept + i);
    return (Vec)(__builtin_convertvector(*(const LooseHalves *)((const uint16_t *)kept + i), Words) << 16);
}

static void keep(void *kept, int64_t i, const float *x, int64_t n, int64_t bits) {
    if (bits == FLOAT32) {
        memcpy((float *)kept + i, x, n * sizeof(float));
        return;
    }
    uint16_t *to = (uint16_t *)kept + i;
    for (int64_t j = 0; j < n; j++) { /* to the nearest, halves to the even; a NaN stays one */
        union { float f; uint32_t u; } one = {x[j]};
        to[j] = x[j] != x[j] ? 0x7fc0 : (one.u + 0x7fff + (one.u >> 16 & 1)) >> 16;
    }
}

static float dot(const float *a, const void *b, int64_t at, int64_t n, int64_t bits) {
    Vec sum = {0};
    for (int64_t i = 0; i < n; i += W) sum += load(a + i) * recalled(b, at + i, bits);
    return total(sum);
}

/* e^x to 2e-7, in steps that a compiler makes vectors of: 2^n times a Taylor series within half a factor of 2. */
static inline float exponential(float x) {
    x = x < -87.f ? -87.f : x > 88.f ? 88.f : x; /* a NaN stays one */
    float n = rintf(x * 1.44269504f), r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.f + r * (1.f + r * (1.f / 2 + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 + r / 720)))));
    union { int32_t i; float f; } power = {((int32_t)n + 127) << 23};
    return y * power.f;
}

/* The c-th of the columns that lie side by side at w, of W rows. */
static inline __attribute__((always_inline)) Vec widened(const char *w, const int bits, const int c) {
    if (bits == INT8) return WIDENED(w);
    if (bits == FLOAT32) return load((const float *)w);
    Words two = *(const LooseWords *)w;
    return (Vec)(c ? two & 0xffff0000u : two << 16);
}

/* R times W rows of a block times T tokens: sums [T, R * W]. All but w, x and in are constants where it is called, so
 * that the sums stay in registers. */
static inline __attribute__((always_inline)) void tile(
    const char *w, const float *x, int64_t in, const int bits, const int R, const int T, float *sums) {
    const int columns = bits == BFLOAT16 ? 2 : 1, bytes = columns * bits / 8;
    Vec sum[R * T];
#pragma GCC unroll 32
    for (int i = 0; i < R * T; i++) sum[i] = (Vec){0};
    for (int64_t k = 0; k < in; k += columns, w += BLOCK * bytes)
#pragma GCC unroll 2
        for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                Vec wide = widened(w + r * W * bytes, bits, c);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++) sum[t * R + r] += wide * x[t * in + k + c];
            }
#pragma GCC unroll 32
    for (int i = 0; i < R * T; i++) *(Loose *)(sums + i * W) = sum[i];
}

static inline __attribute__((always_inline)) void tile_of_rows(
    const char *w, const float *x, int64_t in, const int bits, const int rows, int64_t T, float *sums) {
    if (T == 1) tile(w, x, in, bits, rows / W, 1, sums);
    else if (T == 2) tile(w, x, in, bits, rows / W, 2, sums);
    else tile(w, x, in, bits, rows / W, TOGETHER, sums);
}

static inline __attribute__((always_inline)) void tile_of_bits(
    const Matrix *m, int64_t o, const float *x, const int bits, const int64_t rows, int64_t T, float *sums) {
    const char *w = m->weight + (o / BLOCK * BLOCK * m->in + o % BLOCK * (bits == BFLOAT16 ? 2 : 1)) * (bits / 8);
    if (rows == BLOCK) tile_of_rows(w, x, m->in, bits, BLOCK, T, sums);
    else tile_of_rows(w, x, m->in, bits, UNIT, T, sums);
}

/* Of four float16 the one at ``first``, which is a block's scale, and the next, for some types its minimum. */
static inline __attribute__((always_inline)) void halves(const char *at, const int first, float *scale, float *least) {
#if defined(__F16C__)
    Four all = (Four)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)at));
    *scale = all[first], *least = all[(first + 1) % 4];
#else
    float *const to[] = {scale, least};
    for (int i = 0; i < 2; i++) {
        uint16_t bits;
        memcpy(&bits, at + 2 * ((first + i) % 4), 2);
        union { uint32_t u; float f; } x = {(bits & 0x7fffu) << 13};
        x.f *= 0x1p112f; /* exact, for denormals too */
        x.u |= (bits & 0x8000u) << 16;
        *to[i] = x.f;
    }
#endif
}

/* The values of four-bit numbers. */
static inline __attribute__((always_inline)) Vec scaled(Vec bits, const int type, float scale, float least) {
    return type == Q4_0 ? (bits - 8) * scale : bits * scale + least;
}

/* The offset of the block with the n-th TOLD numbers of a row. */
static inline __attribute__((always_inline)) int64_t block_at(int64_t n, const int type) {
    if (type == Q4_K || type == Q6_K) return n / 8 * (type == Q4_K ? 144 : 210);
    return n * (type == Q8_0 ? 34 : type == Q4_1 ? 20 : 18);
}

/* Dequantises the n-th TOLD numbers of a row in a GGUF file. */
static inline __attribute__((always_inline)) void expanded(const char *row, int64_t n, const int type, Vec *x) {
    float scale, least;
    const uint8_t *block = (const uint8_t *)row + block_at(n, type);
    if (type == Q6_K) halves((const char *)block + 202, 3, &scale, &least); /* it ends with its scale */
    else halves((const char *)block, 0, &scale, &least);
    int part = n % 8, half = part / 4, quarter = part % 4;
    if (type == Q8_0)
#pragma GCC unroll 4
        for (int i = 0; i < TOLD / W; i++) x[i] = WIDENED(block + 2 + i * W) * scale;
    else if (type == Q4_K) { /* eight scales and minima of six bits, packed into twelve bytes */
        const uint8_t *six = block + 4 + part;
        scale *= part < 4 ? six[0] & 63 : (six[4] & 15) | six[-4] >> 6 << 4;
        least *= -(float)(part < 4 ? six[4] & 63 : six[4] >> 4 | six[0] >> 6 << 4);
#pragma GCC unroll 4
        for (int i = 0; i < TOLD / W; i++)
            x[i] = LOW_BITS(BYTES(block + 16 + part / 2 * TOLD + i * W) >> part % 2 * 4, type, scale, least);
    } else if (type == Q6_K) { /* four low and two high bits, and a scale per sixteen numbers */
        const uint8_t *low = block + half * 64 + quarter % 2 * TOLD, *high = block + 128 + half * TOLD;
        const int8_t *scales = (const int8_t *)block + 192 + part * 2;
#pragma GCC unroll 4
        for (int i = 0; i < TOLD / W; i++) {
            Ints bits = (BYTES(low + i * W) >> quarter / 2 * 4 & 15) | (BYTES(high + i * W) >> quarter * 2 & 3) << 4;
            x[i] = __builtin_convertvector(bits - 32, Vec) * (scale * scales[i * W / 16]);
        }
    } else
#pragma GCC unroll 2
        for (int i = 0; i < TOLD / 2 / W; i++) {
            Ints two = BYTES(block + (type == Q4_0 ? 2 : 4) + i * W);
            x[i] = LOW_BITS(two, type, scale, least);
            x[i + TOLD / 2 / W] = LOW_BITS(two >> 4, type, scale, least);
        }
}

/* out[t, r] of R rows, of which ``used`` are there, times T tokens. Type, R and T are constants where it is called, so
 * that the sums stay in registers. */
static inline __attribute__((always_inline)) void dots(
    Rows rows, int64_t used, const float *x, int64_t in, const int type, const int R, const int T, float *out, int64_t stride) {
    Vec sum[SUMS];
#pragma GCC unroll 16
    for (int i = 0; i < R * T; i++) sum[i] = (Vec){0};
    for (int64_t n = 0; n < in / TOLD; n++) {
        Vec own[ROWS][TOLD / W];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            expanded(rows.first + r * rows.step, n, type, own[r]);
            __builtin_prefetch(rows.first + (r + SOON) * rows.step + block_at(n, type));
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++)
#pragma GCC unroll 4
            for (int i = 0; i < TOLD / W; i++) {
                Vec one = load(x + t * in + n * TOLD + i * W);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) sum[t * R + r] += own[r][i] * one;
            }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            if (r < used) out[t * stride + r] = total(sum[t * R + r]);
}

/* ROWS rows: the more tokens, the fewer rows at once, and the more products per dequantised number. */
static inline __attribute__((always_inline)) void dots_of(
    const int type, Rows rows, int64_t used, const float *x, int64_t in, int64_t T, float *out, int64_t stride) {
    const int R = T == 1 ? 8 : T == 8 ? 2 : 4;
    for (int64_t r = 0; r < used; r += R, rows.first += R * rows.step, out += R)
        if (T == 1) dots(rows, used - r, x, in, type, 8, 1, out, stride);
        else if (T == 2) dots(rows, used - r, x, in, type, 4, 2, out, stride);
        else if (T == 4) dots(rows, used - r, x, in, type, 4, 4, out, stride);
        else dots(rows, used - r, x, in, type, 2, 8, out, stride);
}

/* As product, for a matrix in a file. NEAR rows stay in the core's cache while all tokens are multiplied with them. */
static void product_of_rows(const Matrix *m, const float *x, int64_t M, int64_t from, int64_t to, float *out, int64_t stride) {
    for (int64_t near = from; near < to; near += NEAR)
        for (int64_t t = 0, T; t < M; t += T) {
            T = M - t >= 8 ? 8 : M - t >= 4 ? 4 : M - t >= 2 ? 2 : 1;
            for (int64_t o = near; o < to && o < near + NEAR; o += ROWS) {
                Rows rows = m->rows[o / ROWS];
                const float *in = x + t * m->in;
                float *own = out + t * stride + o - from;
                int64_t used = to - o < ROWS ? to - o : ROWS;
                switch (rows.type) {
#define CASE(type) case type: dots_of(type, rows, used, in, m->in, T, own, stride); break;
                    EACH_TYPE(CASE)
#undef CASE
                }
                for (int64_t i = 0; m->bias && i < T; i++)
                    for (int64_t r = 0; r < used; r++) own[i * stride + r] += m->bias[o + r];
            }
        }
}

/* out[m, o - from] of rows from..to, scaled, with bias; ``stride`` between tokens of out. ``from`` is whole units. */
static void product(const Matrix *m, const float *x, int64_t M, int64_t from, int64_t to, float *out, int64_t stride) {
    if (m->rows) {
        product_of_rows(m, x, M, from, to, out, stride);
        return;
    }
    float sums[BLOCK * TOGETHER];
    for (int64_t o = from, rows; o < to; o += rows) {
        rows = o % BLOCK == 0 && to - o >= BLOCK ? BLOCK : UNIT;
        int64_t used = to - o < rows ? to - o : rows;
        for (int64_t t = 0, T; t < M; t += T) {
            T = M - t >= TOGETHER ? TOGETHER : M - t >= 2 ? 2 : 1;
            const float *in = x + t * m->in;
            if (m->bits == INT8) tile_of_bits(m, o, in, INT8, rows, T, sums);
            else if (m->bits == BFLOAT16) tile_of_bits(m, o, in, BFLOAT16, rows, T, sums);
            else tile_of_bits(m, o, in, FLOAT32, rows, T, sums);
            for (int64_t i = 0; i < T; i++)
                for (int64_t r = 0; r < used; r++) {
                    float sum = sums[i * rows + r] * (m->scale ? m->scale[o + r] : 1);
                    out[(t + i) * stride + o - from + r] = sum + (m->bias ? m->bias[o + r] : 0);
                }
        }
    }
}

static void normed(const float *x, const float *gain, float *out, int64_t n, float eps) {
    float by = 1.f / sqrtf(dot(x, x, 0, n, FLOAT32) / n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * by * gain[i];
}

static void all_normed(const Job *job, const float *gain, float *out) {
    int64_t D = job->model->D;
    for (int64_t t = 0; t < job->M; t++) normed(job->x + t * D, gain, out + t * D, D, job->model->eps);
}

static void rotate(float *x, const float *cos, const float *sin, int64_t K) {
    for (int64_t i = 0, j = K / 2; j < K; i++, j++) {
        float a = x[i], b = x[j];
        x[i] = a * cos[i] + b * sin[i];
        x[j] = b * cos[j] + a * sin[j];
    }
}

/* A share of 0..n in whole units. */
static int64_t border(int64_t n, int64_t unit, int id, int threads) {
    int64_t units = (n + unit - 1) / unit, at = units * id / threads * unit;
    return at < n ? at : n;
}

/* Queries to heads [M, H*K], keys and values to the cache, each head by one thread. */
static void read_heads(Part *p, const Layer *l) {
    Job *job = p->job;
    const Model *c = job->model;
    int64_t K = c->K, D = c->D, M = job->M, heads = c->H + 2 * c->G;
    float *own = p->own, *out = own + M * D;
    all_normed(job, l->attention_norm, own);
    for (int64_t h = heads * p->id / p->threads; h < heads * (p->id + 1) / p->threads; h++) {
        product(&l->qkv, own, M, h * K, (h + 1) * K, out, K);
        const float *gain = h < c->H ? l->q_norm : h < c->H + c->G ? l->k_norm : NULL;
        for (int64_t t = 0; t < M; t++) {
            float *head = out + t * K;
            int64_t at = job->positions[t], g = h - c->H;
            if (gain) normed(head, gain, head, K, c->eps);
            if (h < c->H + c->G && c->cos) rotate(head, c->cos + at * K, c->sin + at * K, K);
            if (h < c->H) memcpy(job->heads + (t * c->H + h) * K, head, K * sizeof(float));
            else keep(g < c->G ? l->keys : l->values, ((job->rows[t] * c->G + g % c->G) * c->S + at) * K, head, K, c->kept);
        }
    }
}

static void attend(Part *p, const Layer *l, int64_t t, int64_t h) {
    Job *job = p->job;
    const Model *c = job->model;
    int64_t K = c->K, n = job->positions[t] + 1, past = (job->rows[t] * c->G + h * c->G / c->H) * c->S * K;
    const float *q = job->heads + (t * c->H + h) * K;
    float *scores = p->own, *out = job->mixed + (t * c->H + h) * K, most = -INFINITY, sum = 0, by = 1.f / sqrtf((float)K);
    for (int64_t s = 0; s < n; s++) {
        scores[s] = dot(q, l->keys, past + s * K, K, c->kept) * by;
        most = scores[s] > most ? scores[s] : most;
    }
    for (int64_t s = 0; s < n; s++) scores[s] = exponential(scores[s] - most);
    for (int64_t s = 0; s < n; s++) sum += scores[s];
    memset(out, 0, K * sizeof(float));
    for (int64_t s = 0; s < n; s++)
        for (int64_t k = 0; k < K; k += W) *(Loose *)(out + k) += scores[s] * recalled(l->values, past + s * K + k, c->kept);
    for (int64_t k = 0; k < K; k++) out[k] /= sum;
}

static void add_product(Part *p, const Matrix *m, const float *in) {
    Job *job = p->job;
    int64_t from = border(m->out, UNIT, p->id, p->threads), to = border(m->out, UNIT, p->id + 1, p->threads);
    product(m, in, job->M, from, to, p->own, to - from);
    for (int64_t t = 0; t < job->M; t++)
        for (int64_t o = from; o < to; o++) job->x[t * m->out + o] += p->own[t * (to - from) + o - from];
}

static void gated(Part *p, const Layer *l) {
    Job *job = p->job;
    int64_t D = job->model->D, F = job->model->F, M = job->M;
    int64_t from = border(F, UNIT, p->id, p->threads), to = border(F, UNIT, p->id + 1, p->threads), n = to - from;
    float *own = p->own, *gate = own + M * D, *up = gate + M * n;
    all_normed(job, l->mlp_norm, own);
    product(&l->gate_up, own, M, from, to, gate, n);
    product(&l->gate_up, own, M, F + from, F + to, up, n);
    for (int64_t t = 0; t < M; t++)
        for (int64_t i = 0; i < n; i++) {
            float g = gate[t * n + i];
            job->hidden[t * F + from + i] = g / (1.f + exponential(-g)) * up[t * n + i];
        }
}

static void through_layers(Part *p) {
    Job *job = p->job;
    const Model *c = job->model;
    for (const Layer *l = c->layers; l < c->layers + c->count; l++) {
        read_heads(p, l);
        meet(p);
        for (int64_t i = p->id; i < job->M * c->H; i += p->threads) attend(p, l, i / c->H, i % c->H);
        meet(p);
        add_product(p, &l->down_from_heads, job->mixed);
        meet(p);
        gated(p, l);
        meet(p);
        add_product(p, &l->down, job->hidden);
        meet(p);
    }
    if (p->id == 0) all_normed(job, c->norm, job->out);
}

static void through_matrix(Part *p) {
    Job *job = p->job;
    const Matrix *m = job->matrix;
    int64_t from = border(m->out, UNIT, p->id, p->threads), to = border(m->out, UNIT, p->id + 1, p->threads);
    product(m, job->in, job->M, from, to, job->out + from, m->out);
}

static int run(Job *job, int threads) {
    threads = threads < 1 ? 1 : threads > MOST ? MOST : threads;
    float *own = aligned_alloc(64, (size_t)(job->scratch * threads) * sizeof(float));
    if (!own) return 1;
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        Part part = {job, omp_get_thread_num(), omp_get_num_threads(), own + omp_get_thread_num() * job->scratch};
#else
        Part part = {job, 0, 1, own};
#endif
        if (job->model) through_layers(&part);
        else through_matrix(&part);
    }
    free(own);
    return 0;
}

/* x [M, D]: embeddings, which are overwritten; out [M, D]: states after the last norm. Returns 1 without memory. */
int klype_pass(const Model *c, float *x, float *out, const int64_t *rows, const int64_t *positions, int64_t M, int threads) {
    int64_t longest = 0;
    for (int64_t t = 0; t < M; t++) longest = positions[t] >= longest ? positions[t] + 1 : longest;
    int64_t widest = M * (c->D + (c->K > 2 * c->F ? c->K : 2 * c->F));
    Job job = {.model = c, .x = x, .out = out, .rows = rows, .positions = positions, .M = M};
    job.scratch = ((widest > longest ? widest : longest) + 15) / 16 * 16;
    float *between = aligned_alloc(64, (size_t)(M * (2 * c->H * c->K + c->F)) * sizeof(float));
    if (!between) return 1;
    job.heads = between, job.mixed = between + M * c->H * c->K, job.hidden = job.mixed + M * c->H * c->K;
    int failed = run(&job, threads);
    free(between);
    return failed;
}

/* out [M, in]: dequantised rows of a matrix in a file. */
int klype_expand(const Matrix *m, const int64_t *ids, int64_t M, float *out, int threads) {
    (void)threads;  // a row is too little for two
    for (int64_t t = 0; t < M; t++) {
        Rows rows = m->rows[ids[t] / ROWS];
        const char *row = rows.first + ids[t] % ROWS * rows.step;
        for (int64_t n = 0; n < m->in / TOLD; n++) {
            Vec x[TOLD / W];
            switch (rows.type) {
#define CASE(type) case type: expanded(row, n, type, x); break;
                EACH_TYPE(CASE)
#undef CASE
            }
            memcpy(out + t * m->in + n * TOLD, x, sizeof x);
        }
    }
    return 0;
}

/* out [M, out] = in [M, in] times the matrix. */
int klype_product(const Matrix *m, const float *in, float *out, int64_t M, int threads) {
    Job job = {.matrix = m, .in = in, .out = out, .M = M, .scratch = 16};
    return run(&job, threads);
}
