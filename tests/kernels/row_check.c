/* Runs every pass of one instruction set over rows made from integers, and prints what came out as
 * raw bits: two builds that print the same compute the same.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels.h"

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
