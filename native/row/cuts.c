/* See cuts.h. */
#include <math.h>
#include <string.h>

#include "cuts.h"

double edge_weight(const edge_candidate *c, size_t n) {
    double total = 0.0;
    for (size_t i = 0; i < n; i++) total += c[i].weight;
    return total;
}

float edge_highest(const edge_candidate *c, size_t n) {
    float best = -INFINITY;
    for (size_t i = 0; i < n; i++) best = c[i].logit > best ? c[i].logit : best;
    return best;
}

size_t edge_keep_above(edge_candidate *c, size_t n, float floor) {
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (c[i].logit >= floor) c[kept++] = c[i];
    return kept;
}

float edge_min_floor(float best, double min_p) { return (float)((double)best + log(min_p)); }

/* In nats. */
static double entropy(const edge_candidate *c, size_t n, double total) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double share = c[i].weight / total;
        if (share > 0.0) sum -= share * log(share);
    }
    return sum;
}

size_t edge_keep_typical(edge_candidate *c, size_t n, double share, edge_candidate *spare) {
    edge_sort(c, n);
    const double total = edge_weight(c, n), expected = entropy(c, n, total);
    for (size_t i = 0; i < n; i++) {
        const double surprise = log(total) - ((double)c[i].logit - (double)c[0].logit);
        spare[i].logit = (float)-fabs(surprise - expected);
        spare[i].token = (int32_t)i;
        spare[i].weight = c[i].weight;
    }
    const size_t kept = edge_keep_mass(spare, n, share * total);
    for (size_t i = 0; i < kept; i++) spare[i] = c[spare[i].token];
    memcpy(c, spare, kept * sizeof *c);
    return kept;
}

size_t edge_count_top(edge_candidate *c, size_t n, double threshold) {
    edge_sort(c, n);
    const double total = edge_weight(c, n);
    size_t above = 0;
    while (above < n && c[above].weight >= threshold * total) above++;
    return above > 1 ? above - 1 : 0;
}

double edge_heat(const edge_candidate *c, size_t n, double middle, double range, double exponent) {
    if (range == 0.0 || n < 2) return middle;
    const double low = fmax(0.0, middle - range), high = middle + range;
    const double share = entropy(c, n, edge_weight(c, n)) / log((double)n);
    return low + (high - low) * pow(share, exponent);
}
