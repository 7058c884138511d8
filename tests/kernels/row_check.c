/* Runs every pass of one instruction set over rows made from integers, and prints what came out as
 * raw bits: two builds that print the same compute the same. Then looks at the same rows through a
 * view and draws from them; what went through the mathematics library is printed with fewer digits.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "row/cuts.h"
#include "row/kernels.h"
#include "row/random.h"
#include "row/view.h"

#define MOST 5000

static float row[MOST], maxima[32];
static uint32_t allowed[(MOST + 31) / 32];
static uint8_t touched[MOST];
static double blocks[8];
static edge_candidate found[MOST];

static void show(const char *what, const void *at, size_t size) {
    const unsigned char *bytes = at;
    printf("%s ", what);
    for (size_t i = 0; i < size; i++) printf("%02x", bytes[i]);
    printf("\n");
}

static void show_cuts(edge_view *view, const edge_random *random) {
    static edge_candidate spare[MOST];
    edge_candidate *c = view->found;
    double total;
    size_t n = edge_view_collect_mass(view, 0.9, &total);
    n = edge_keep_typical(c, n, 0.8, spare);
    printf("typical %zu %.6f %.6f\n", n, edge_weight(c, n) / total, edge_highest(c, n));
    printf("top %zu\n", edge_count_top(c, n, 0.01));
    printf("heat %.6f %.6f\n", edge_heat(c, n, 0.8, 0.5, 1.5), edge_heat(c, n, 0.8, 0.0, 1.0));
    n = edge_keep_above(c, n, edge_min_floor(edge_highest(c, n), 0.2));
    show("kept", c, n * sizeof *c);
    show("random", random, sizeof *random);
}

/* Draws thrice, so that the history lowers what was drawn and what repeats. */
static int show_view(const edge_kernels *k, const float *x, size_t n, const uint32_t *mask) {
    edge_view view = {.kernels = k};
    edge_changes *changes = &view.changes;
    edge_random random;
    changes->repetition = 1.5;
    changes->presence = changes->frequency = 0.25;
    changes->dry_multiplier = changes->dry_base = 2.0;
    changes->dry_allowed = 1;
    changes->window = 3;
    changes->dry_window = 5;
    changes->n_bias = 1;
    if (!edge_view_open(&view, n)) return 2;
    changes->bias_tokens[0] = 1;
    changes->bias_values[0] = 1.5f;
    edge_changes_reset(changes);
    edge_seed(&random, n);
    for (int draw = 0; draw < 3; draw++) {
        int wrong = edge_view_look(&view, x, mask, draw > 0);
        printf("%d\n", wrong);
        show("best", &view.best, sizeof view.best);
        show("top", &view.top, sizeof view.top);
        show("changed", changes->changed, 0);
        for (size_t i = 0; i < changes->n_changed; i++) show("", changes->changed + i, 8);
        if (!wrong) {
            double stats[EDGE_STATS];
            float sigma = edge_view_sigma_floor(&view, 1.0), kth = edge_view_kth(&view, 2);
            show("sigma", &sigma, sizeof sigma);
            show("kth", &kth, sizeof kth);
            size_t some = edge_view_collect(&view, sigma);
            for (size_t i = 0; i < some; i++) show("", view.found + i, 8);
            show_cuts(&view, &random);
            double mass = edge_view_mass(&view, 0.7f);
            show("mass", &mass, sizeof mass);
            int32_t token = (int32_t)edge_view_walk(&view, edge_uniform(&random) * mass, 0.7f);
            mass = edge_view_mass_before(&view, token);
            show("before", &mass, sizeof mass);
            printf("drawn %d best %d\n", (int)token, (int)edge_view_best(&view));
            if (draw > 0) {
                edge_view_tell(&view, token, stats);
                for (int i = 0; i < EDGE_STATS; i++) printf("%.6f ", stats[i]);
                printf("flat %d\n", edge_view_is_flat(&view));
            }
            edge_accept(changes, 1);
            edge_accept(changes, token);
        }
        edge_forget(changes);
        for (size_t i = 0; i < n; i++)
            if (changes->touched[i]) return 3;
    }
    edge_view_close(&view);
    return 0;
}

int main(int count, char **names) {
    static const size_t sizes[] = {2, 15, 16, 17, 255, 256, 257, 1023, 1025, 4999};
    const edge_kernels *k = edge_kernels_of(count > 1 ? names[1] : NULL);
    if (k == NULL) return 2;
    fprintf(stderr, "%s\n", k->name);
    uint32_t state = 12345;
    for (int at = 0; at < 10; at++) {
        size_t n = sizes[at];
        for (size_t i = 0; i < n; i++) {
            state = state * 1664525u + 1013904223u;
            row[i] = ((float)(state >> 8) / 16777216.0f - 0.7f) * 40.0f;
            if (state % 11 == 0) row[i] = -INFINITY;
            touched[i] = state % 97 == 0;
            if (i % 32 == 0) allowed[i / 32] = state ^ state << 13;
        }
        row[1] = 11.0f;
        float best = 11.5f;
        edge_sums sums;
        edge_spread spread;
        for (int masked = 0; masked < 2; masked++) {
            const uint32_t *mask = masked ? allowed : NULL;
            printf("%d\n", k->maxima(row, n, mask, maxima));
            show("maxima", maxima, (n + EDGE_BLOCK - 1) / EDGE_BLOCK * sizeof *maxima);
            k->sums(row, n, best, masked ? 1.25f : 1.0f, mask, blocks, &sums);
            show("sums", &sums, sizeof sums);
            show("blocks", blocks, (n + EDGE_SUM_BLOCK - 1) / EDGE_SUM_BLOCK * sizeof *blocks);
            k->maxima(row, n, NULL, maxima);
            size_t parts = (n + EDGE_SUM_BLOCK - 1) / EDGE_SUM_BLOCK * sizeof *blocks;
            k->before(row, n, 5.0f, n / 2, best, 0.7f, mask, maxima, blocks);
            show("before", blocks, parts);
            k->before(row, n, row[n / 3], n / 3, best, 0.7f, mask, NULL, blocks);
            show("before one", blocks, parts);
            size_t some = k->collect(row, n, 3.0f, maxima, mask, touched, found);
            k->weigh(found, some, best, 0.8f);
            show("found", found, some * sizeof *found);
            int failed = show_view(k, row, n, mask);
            if (failed) return failed;
        }
        printf("%zu\n", k->above(row, n, 5.0f, maxima));
        k->spread(row, n, best, &spread);
        show("spread", &spread.first, 2 * sizeof(double));
        printf("%zu\n", spread.count);
    }
    row[3] = NAN;
    printf("%d\n", k->maxima(row, 64, NULL, maxima));
    return 0;
}
