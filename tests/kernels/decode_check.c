/* Runs one generation through the decode loop over a model made of its arguments, and prints what
 * is certain after every step:
 *
 *     decode_check ROOM CHUNK END STOPS stop... piece...
 *
 * The model draws token 0, 1, 2, ... whose texts are the pieces; token END ends. The prompt has
 * five tokens. A line is: finish, tokens kept, tokens of the last batch, the certain text in hex.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decode/loop.h"

#define PROMPT 5

static char **pieces;
static int drawn, accepted, last_batch, refused;
static float row[1];

static int32_t piece(const void *vocab, int32_t token, char *out, int32_t size, int32_t strip,
                     unsigned char special) {
    (void)vocab, (void)strip, (void)special;
    const int32_t length = (int32_t)strlen(pieces[token]);
    if (length > size) return -length;
    memcpy(out, pieces[token], (size_t)length);
    return length;
}

static void accept(void *sampler, ptrdiff_t token) { accepted += sampler == NULL && token >= 0; }

static int32_t decode(void *context, edge_batch batch) {
    (void)context;
    last_batch = batch.n_tokens;
    return 0;
}

static float *logits(void *context, int32_t at) {
    (void)context;
    return at == last_batch - 1 ? row : NULL;
}

static unsigned char keep(void *memory, int32_t sequence, int32_t from, int32_t to) {
    (void)memory, (void)sequence, (void)from, (void)to;
    refused++;
    return 1;
}

static int64_t draw(void *sampler, const float *x, const uint32_t *allowed, double *stats) {
    (void)sampler;
    for (int i = 0; i < EDGE_STATS; i++) stats[i] = i;
    return x == row && allowed == NULL ? drawn++ : -1;
}

int main(int count, char **words) {
    int32_t tokens[PROMPT + 64] = {0};
    double stats[64 * EDGE_STATS];
    size_t sizes[16];
    if (count < 5) return 2;
    const int room = atoi(words[1]), end = atoi(words[3]), stops = atoi(words[4]);
    pieces = words + 5 + stops;
    edge_loop loop = {.decode = decode, .logits = logits, .remove = keep, .draw = draw,
                      .vocabulary = {.piece = piece, .accept = accept},
                      .chunk = atoi(words[2]), .count = 1};
    edge_slot slot = {.tokens = tokens, .n_prompt = PROMPT, .n_tokens = PROMPT, .room = room,
                      .stats = stats, .statistics = 1, .row = -1, .n_stops = (size_t)stops,
                      .stops = (const char **)words + 5, .stop_sizes = sizes};
    for (int i = 0; i < stops; i++) {
        sizes[i] = strlen(slot.stops[i]);
        if (sizes[i] > slot.longest) slot.longest = sizes[i];
    }
    if (!edge_loop_open(&loop, loop.chunk, 65)) return 2;
    loop.slots[0] = &slot;
    loop.vocabulary.ends[end] = 1;
    while (!slot.finish) {
        edge_loop_step(&loop);
        printf("%d %d %d ", slot.finish, slot.kept, last_batch);
        for (size_t i = 0; i < slot.certain; i++) printf("%02x", (unsigned char)slot.text[i]);
        printf("\n");
    }
    const int answered = slot.n_tokens - slot.n_prompt;
    const int wrong = accepted != answered || refused || slot.fed ||
                      stats[answered * EDGE_STATS - 1] != EDGE_STATS - 1;
    free(slot.text);
    edge_loop_close(&loop);
    return wrong;
}
