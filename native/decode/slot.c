/* See slot.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "slot.h"

#define PIECE 256
#define NO_MEMORY (-101)

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

static int append(edge_slot *slot, const char *piece, size_t size) {
    if (slot->n_text + size > slot->text_room) {
        const size_t room = 2 * (slot->text_room + size) + 64;
        char *grown = realloc(slot->text, room);
        if (grown == NULL) return 0;
        slot->text = grown;
        slot->text_room = room;
    }
    if (size) memcpy(slot->text + slot->n_text, piece, size);
    slot->n_text += size;
    return 1;
}

/* Cuts the text before the stop string that is complete first; says whether there is one. Only
 * those are looked for that end in the last `added` bytes. */
static int stopped(edge_slot *slot, size_t added) {
    size_t best_end = SIZE_MAX, best = 0;
    for (size_t i = 0; i < slot->n_stops; i++) {
        const size_t size = slot->stop_sizes[i], old = slot->n_text - added;
        if (size > slot->n_text) continue;
        for (size_t at = old >= size ? old - size + 1 : 0; at + size <= slot->n_text; at++) {
            if (memcmp(slot->text + at, slot->stops[i], size) != 0) continue;
            if (at + size < best_end || (at + size == best_end && at < best)) {
                best_end = at + size;
                best = at;
            }
            break;
        }
    }
    if (best_end == SIZE_MAX) return 0;
    slot->n_text = slot->certain = best;
    return 1;
}

/* The bytes of a last UTF-8 character that is not whole yet, 0 to 3. */
static size_t half(const char *text, size_t size) {
    for (size_t back = 1; back <= least(3, size); back++) {
        const uint8_t byte = (uint8_t)text[size - back];
        if (byte >= 0xF0) return back;
        if (byte >= 0xE0) return back < 3 ? back : 0;
        if (byte >= 0xC0) return back < 2 ? back : 0;
        if (byte < 0x80) return 0;
    }
    return 0;
}

/* How many of the last bytes may yet become a stop string, or are half a character. */
static size_t unsure(const edge_slot *slot) {
    const size_t partial = half(slot->text, slot->n_text);
    size_t length = least(slot->longest ? slot->longest - 1 : 0, slot->n_text);
    for (; length > partial; length--)
        for (size_t i = 0; i < slot->n_stops; i++)
            if (slot->stop_sizes[i] > length &&
                memcmp(slot->text + slot->n_text - length, slot->stops[i], length) == 0)
                return length;
    return partial;
}

static void note(edge_slot *slot, int32_t at, const double *stats) {
    double *to = slot->stats + (size_t)at * EDGE_STATS;
    if (stats != NULL && slot->statistics) {
        memcpy(to, stats, EDGE_STATS * sizeof *to);
        return;
    }
    for (int i = 0; i < EDGE_STATS; i++) to[i] = NAN;
    to[5] = 1.0;
    to[6] = 0.0;
}

void edge_take(edge_slot *slot, const edge_vocabulary *vocabulary, int32_t token,
               const double *stats) {
    const int32_t at = slot->n_tokens - slot->n_prompt;
    if (at >= slot->room) {
        slot->finish = EDGE_LENGTH;
        return;
    }
    slot->tokens[slot->n_tokens++] = token;
    note(slot, at, stats);
    vocabulary->accept(slot->sampler, token);
    if (vocabulary->ends[token]) {
        slot->finish = EDGE_STOP;
        slot->certain = slot->n_text;
        return;
    }
    char piece[PIECE];
    const int32_t found = vocabulary->piece(vocabulary->vocab, token, piece, PIECE, 0, 0);
    const size_t size = found < 0 ? 0 : (size_t)found;
    if (!append(slot, piece, size)) {
        slot->finish = EDGE_FAILED;
        slot->why = NO_MEMORY;
    } else if (stopped(slot, size)) {
        slot->finish = EDGE_STOP;
    } else if (at + 1 >= slot->room) {
        slot->finish = EDGE_LENGTH;
        slot->certain = slot->n_text;
    } else {
        slot->certain = slot->n_text - unsure(slot);
    }
}
