/* The scalar work on the few candidates that a pass has left: sorting and selecting. */
#include <stdlib.h>

#include "kernels.h"

#define SMALL 24

static inline int before(edge_candidate a, edge_candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

static inline void swap(edge_candidate *a, edge_candidate *b) {
    edge_candidate moved = *a;
    *a = *b;
    *b = moved;
}

static void insertion(edge_candidate *c, size_t n) {
    for (size_t i = 1; i < n; i++) {
        edge_candidate moved = c[i];
        size_t j = i;
        for (; j > 0 && before(moved, c[j - 1]); j--) c[j] = c[j - 1];
        c[j] = moved;
    }
}

/* Splits n > 2 candidates around the median of three; returns where the pivot ends up. */
static size_t split(edge_candidate *c, size_t n) {
    size_t middle = n / 2;
    if (before(c[middle], c[0])) swap(c + middle, c);
    if (before(c[n - 1], c[0])) swap(c + n - 1, c);
    if (before(c[n - 1], c[middle])) swap(c + n - 1, c + middle);
    edge_candidate pivot = c[middle];
    swap(c + middle, c + n - 2);
    size_t at = 1;
    for (size_t i = 1; i < n - 2; i++)
        if (before(c[i], pivot)) swap(c + i, c + at++);
    swap(c + at, c + n - 2);
    return at;
}

void edge_sort(edge_candidate *c, size_t n) {
    while (n > SMALL) {
        size_t at = split(c, n);
        if (at < n - at) {
            edge_sort(c, at);
            c += at + 1;
            n -= at + 1;
        } else {
            edge_sort(c + at + 1, n - at - 1);
            n = at;
        }
    }
    insertion(c, n);
}

void edge_keep_best(edge_candidate *c, size_t n, size_t k) {
    while (n > SMALL && k < n) {
        size_t at = split(c, n);
        if (at >= k) {
            n = at;
        } else {
            c += at + 1;
            n -= at + 1;
            k -= at + 1;
        }
    }
    if (k < n) insertion(c, n);
}

#define BUCKETS 512
#define MANY 1024

static inline int bucket(float logit, float best, float scale) {
    return (int)((best - logit) * scale);
}

/* Narrows [*first, *end) to the bucket of logits in which the weights reach the target, and adds
 * what is better than that to *held. What is worse is dropped. */
static void narrow(edge_candidate *c, size_t *first, size_t *end, double target, double *held) {
    double mass[BUCKETS] = {0};
    const size_t n = *end;
    float best = c[0].logit, worst = best;
    for (size_t i = 0; i < n; i++) {
        best = c[i].logit > best ? c[i].logit : best;
        worst = c[i].logit < worst ? c[i].logit : worst;
    }
    if (!(best > worst)) return;
    const float scale = (float)(BUCKETS - 1) / (best - worst);
    for (size_t i = 0; i < n; i++) mass[bucket(c[i].logit, best, scale)] += c[i].weight;
    int at = 0;
    while (at < BUCKETS - 1 && *held + mass[at] < target) *held += mass[at++];
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        c[kept] = c[i];
        kept += bucket(c[i].logit, best, scale) <= at;
    }
    size_t front = 0, back = kept;
    while (front < back) {
        if (bucket(c[front].logit, best, scale) < at)
            front++;
        else
            swap(c + front, c + --back);
    }
    *first = front;
    *end = kept;
}

size_t edge_keep_mass(edge_candidate *c, size_t n, double target) {
    double held = 0.0;
    size_t first = 0, end = n;
    if (n > MANY) narrow(c, &first, &end, target, &held);
    while (end - first > SMALL) {
        size_t at = first + split(c + first, end - first);
        double part = held;
        for (size_t i = first; i < at; i++) part += c[i].weight;
        if (part >= target) {
            end = at;
        } else if (part + c[at].weight >= target) {
            return at + 1;
        } else {
            held = part + c[at].weight;
            first = at + 1;
        }
    }
    insertion(c + first, end - first);
    for (size_t i = first; i < end; i++) {
        held += c[i].weight;
        if (held >= target) return i + 1;
    }
    return end;
}

/* Hoare's FIND (1961). */
float edge_kth_largest(float *x, size_t n, size_t k) {
    ptrdiff_t low = 0, high = (ptrdiff_t)n - 1, at = (ptrdiff_t)k - 1;
    while (low < high) {
        float pivot = x[at];
        ptrdiff_t i = low, j = high;
        do {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                float moved = x[i];
                x[i++] = x[j];
                x[j--] = moved;
            }
        } while (i <= j);
        if (j < at) low = i;
        if (at < i) high = j;
    }
    return x[at];
}
