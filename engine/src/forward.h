// One pass through the encoder and the task head.
#pragma once

#include "batch.h"
#include "model.h"

namespace sparselane {

// Writes logits [logit_rows][labels]. If `hidden` is not null also [layers + 1][total][hidden]: the embeddings' output,
// then each layer's. The batch must have passed check_batch. Calls on models that share a pool wait for each other.
void forward(Model& model, const Batch& batch, float* logits, float* hidden);

}  // namespace sparselane
