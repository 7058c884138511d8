/* A row as tokens are drawn from it: changed and masked, though nothing is ever written to it.
 *
 * At most two passes: the maximum of every block, then sums of exponentials where statistics or the
 * mass of the whole row are needed. Everything else works on the candidates that a threshold
 * leaves, found through the block maxima, and on the short list of changed tokens beside the row.
 */
#ifndef EDGE_VIEW_H
#define EDGE_VIEW_H

#include "changes.h"
#include "kernels.h"

#define EDGE_STATS 7 /* numbers that tell of a draw, see edge_view_tell */

typedef struct {
    const edge_kernels *kernels;
    size_t size, blocks, sum_blocks;
    edge_changes changes;
    float *maxima; /* of the unmasked row */
    float *own;    /* of what is allowed and not changed */
    float *spare;
    double *masses;
    double *ahead; /* as masses, of the tokens better than one */
    edge_candidate *found;
    /* Of one draw. */
    const float *x;
    const uint32_t *allowed;
    float best, second; /* of the unmasked row */
    float top;          /* of the changed and masked row */
    int summed;         /* whether sums and masses are those of the unmasked row */
    edge_sums sums;
} edge_view;

/* Takes memory for rows of `size`; `kernels` and what `changes` asks for are set before. Returns 0
 * where there is none. */
int edge_view_open(edge_view *view, size_t size);
void edge_view_close(edge_view *view);

/* Why no token can be drawn. */
enum { EDGE_INVALID = 1, EDGE_EMPTY, EDGE_MASKED };

/* Looks at a row: finds its best and, for statistics, its second and its sums; lists the changes
 * and finds the best of the changed, masked row. Returns why nothing can be drawn, or 0. Unless
 * that is EDGE_INVALID or EDGE_EMPTY, edge_forget must follow the draw. */
int edge_view_look(edge_view *view, const float *x, const uint32_t *allowed, int statistics);

/* Gives the logarithm of the sum of exponentials of a row; returns why there is none, -1 for want
 * of memory, or 0. */
int edge_log_sum(const edge_kernels *kernels, const float *x, size_t size, double *out);

/* Fills EDGE_STATS numbers about a drawn token, read off the unmasked row, in the order of
 * TokenStats after the token itself. Needs a look with statistics. */
void edge_view_tell(const edge_view *view, int64_t token, double *stats);

/* The first token of the largest logit. */
int64_t edge_view_best(const edge_view *view);

/* Whether most blocks have a token near the best: top-p alone would keep thousands. */
int edge_view_is_flat(const edge_view *view);

/* The logit that lies `sigmas` standard deviations of the unmasked row below the best. */
float edge_view_sigma_floor(const edge_view *view, double sigmas);

/* A floor that at least k tokens reach, and not many more. */
float edge_view_kth(edge_view *view, size_t k);

/* Takes every possible token of at least `floor` to `found`; returns how many. */
size_t edge_view_collect(edge_view *view, float floor);

/* Takes enough of the best tokens to hold `share` of the whole mass, and gives that mass. */
size_t edge_view_collect_mass(edge_view *view, double share, double *total);

/* The sum of exp((logit - top) * scale); leaves every sum block's share, in the same unit, in
 * `masses`. */
double edge_view_mass(edge_view *view, float scale);

/* The mass of the tokens better than one, in the unit of edge_view_mass(view, 1); `masses` keeps
 * what it holds. */
double edge_view_mass_before(edge_view *view, int64_t token);

/* The token at which the masses, as edge_view_mass left them for `scale`, reach `aim` in the
 * vocabulary's order. Uses `found`. */
int64_t edge_view_walk(edge_view *view, double aim, float scale);

#endif
