/* What cuts a few candidates further, and the temperature they are drawn at.
 *
 * Functions over arrays of candidates whose weights are exp(logit - best), in any unit. Top-p is
 * edge_keep_mass and top-k is edge_keep_best, see kernels.h.
 */
#ifndef EDGE_CUTS_H
#define EDGE_CUTS_H

#include "kernels.h"

/* The sum of the weights. */
double edge_weight(const edge_candidate *c, size_t n);

/* The largest logit; -inf where there is none. */
float edge_highest(const edge_candidate *c, size_t n);

/* Moves the candidates of at least `floor` to the front, in their order; returns how many. */
size_t edge_keep_above(edge_candidate *c, size_t n, float floor);

/* The logit that min-p asks of a candidate where the best has `best`; 0 < min_p <= 1. */
float edge_min_floor(float best, double min_p);

/* Keeps what is about as surprising as expected and holds `share` of the mass (typical sampling,
 * Meister et al. 2022, arXiv:2202.00666); returns how many. `spare` has room for n. */
size_t edge_keep_typical(edge_candidate *c, size_t n, double share, edge_candidate *spare);

/* How many of the best to leave out: all that hold `threshold` of the mass but the last of them
 * (XTC, p-e-w 2024). The candidates are then in order. */
size_t edge_count_top(edge_candidate *c, size_t n, double threshold);

/* A temperature between middle - range, at least 0, and middle + range that follows the entropy
 * (dynamic temperature, kalomaze 2023); `middle` where range is 0 or n below 2. */
double edge_heat(const edge_candidate *c, size_t n, double middle, double range, double exponent);

#endif
