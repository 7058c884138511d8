/* See loop.h. */
#include <stdlib.h>

#include "loop.h"

#define NO_ROW (-100)

static inline int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

int edge_loop_open(edge_loop *loop, int32_t room, int32_t size) {
    edge_batch *batch = &loop->batch;
    const size_t n = (size_t)room;
    loop->room = room;
    loop->vocabulary.ends = calloc((size_t)size, 1);
    batch->token = calloc(n, sizeof *batch->token);
    batch->pos = calloc(n, sizeof *batch->pos);
    batch->n_seq_id = calloc(n, sizeof *batch->n_seq_id);
    batch->seq_id = calloc(n + 1, sizeof *batch->seq_id);
    batch->logits = calloc(n, sizeof *batch->logits);
    loop->single = calloc(n, sizeof *loop->single);
    if (!(loop->vocabulary.ends && batch->token && batch->pos && batch->n_seq_id &&
          batch->seq_id && batch->logits && loop->single))
        return 0;
    for (size_t i = 0; i < n; i++) {
        batch->n_seq_id[i] = 1;
        batch->seq_id[i] = loop->single + i;
    }
    return 1;
}

void edge_loop_close(edge_loop *loop) {
    free(loop->vocabulary.ends);
    free(loop->batch.token);
    free(loop->batch.pos);
    free(loop->batch.n_seq_id);
    free(loop->batch.seq_id);
    free(loop->batch.logits);
    free(loop->single);
}

/* Puts at most `most` of a slot's next tokens behind the batch's first n; returns its length. */
static int32_t feed(edge_loop *loop, edge_slot *slot, int32_t n, int32_t most) {
    int32_t count = least(most, slot->n_tokens - slot->kept);
    if (slot->boundary > slot->kept) count = least(count, slot->boundary - slot->kept);
    for (int32_t i = 0; i < count; i++) {
        loop->batch.token[n + i] = slot->tokens[slot->kept + i];
        loop->batch.pos[n + i] = slot->kept + i;
        loop->batch.logits[n + i] = 0;
        loop->single[n + i] = slot->sequence;
    }
    slot->fed = count;
    if (count > 0 && slot->kept + count == slot->n_tokens) {
        slot->row = n + count - 1;
        loop->batch.logits[slot->row] = 1;
    }
    return n + count;
}

/* First every token that continues an answer, then prompts, in turns, as far as they go. */
static int32_t fill(edge_loop *loop, int32_t only) {
    int32_t n = 0;
    for (int32_t i = 0; i < loop->count; i++) {
        edge_slot *slot = loop->slots[i];
        slot->fed = 0;
        slot->row = -1;
        if ((only < 0 || only == i) && !slot->finish && slot->n_tokens - slot->kept == 1)
            n = feed(loop, slot, n, 1);
    }
    const int32_t room = n == 0 ? loop->room : least(loop->room, n + loop->chunk);
    for (int32_t i = 0; i < loop->count; i++) {
        edge_slot *slot = loop->slots[only >= 0 ? only : (i + loop->turn) % loop->count];
        if (slot->fed == 0 && !slot->finish && n < room) n = feed(loop, slot, n, room - n);
    }
    return n;
}

static void fail(edge_slot *slot, int why) {
    slot->finish = EDGE_FAILED;
    slot->why = why;
}

static void draw(edge_loop *loop, edge_slot *slot) {
    double stats[EDGE_STATS];
    const float *x = loop->logits(loop->context, slot->row);
    if (x == NULL) {
        fail(slot, NO_ROW);
        return;
    }
    const uint32_t *allowed = slot->constrained ? slot->mask : NULL;
    const int64_t token = loop->draw(slot->sampler, x, allowed, stats);
    if (token < 0) {
        fail(slot, (int)token);
        return;
    }
    slot->mask_ready = 0;
    edge_take(slot, &loop->vocabulary, (int32_t)token, stats);
}

/* Fills a batch, decodes it, draws where a row came out; on failure all is as before. */
static int pass(edge_loop *loop, int32_t only) {
    const int32_t n = fill(loop, only);
    if (n == 0) return 0;
    loop->batch.n_tokens = n;
    const int status = loop->decode(loop->context, loop->batch);
    for (int32_t i = 0; i < loop->count; i++) {
        edge_slot *slot = loop->slots[i];
        if (slot->fed == 0) continue;
        if (status != 0) {
            loop->remove(loop->memory, slot->sequence, slot->kept, -1);
        } else {
            slot->kept += slot->fed;
            if (slot->row >= 0) draw(loop, slot);
        }
        slot->fed = 0;
    }
    return status;
}

/* Whether a slot has been cancelled or waits for its mask. */
static int waiting(const edge_loop *loop) {
    for (int32_t i = 0; i < loop->count; i++)
        if (loop->slots[i]->cancel || edge_wants_mask(loop->slots[i])) return 1;
    return 0;
}

int edge_loop_step(edge_loop *loop) {
    if (loop->count == 0 || waiting(loop)) return 1;
    if (pass(loop, -1) != 0) {
        for (int32_t i = 0; i < loop->count; i++) {
            edge_slot *slot = loop->slots[i];
            slot->why = pass(loop, i);
            if (slot->why != 0 && !slot->finish) slot->finish = EDGE_FAILED;
        }
    }
    loop->steps++;
    loop->turn++;
    int needed = 0;
    for (int32_t i = 0; i < loop->count; i++)
        needed |= loop->slots[i]->finish || edge_at_boundary(loop->slots[i]);
    return needed || waiting(loop);
}

int edge_loop_bare(edge_loop *loop, int32_t sequence, int32_t token, int32_t count) {
    edge_slot slot = {.sequence = sequence, .tokens = &token, .n_tokens = 1};
    int status = 0;
    for (int32_t i = 0; i < count; i++) {
        loop->batch.n_tokens = feed(loop, &slot, 0, 1);
        loop->batch.pos[0] = i;
        status = loop->decode(loop->context, loop->batch);
        if (status != 0 || loop->logits(loop->context, 0) == NULL) break;
    }
    loop->remove(loop->memory, sequence, -1, -1);
    return status;
}
