// One pass over stored logits: everything the calibration metrics need of the softmax of each row.
#pragma once
#include <cstdint>

namespace vlcal {

// [n] each; log_likelihood is null without labels.
struct StoredSoftmax {
  int64_t* predicted;     // lowest index of the largest logit
  float* confidence;      // largest probability
  float* entropy;         // in nats
  float* log_likelihood;  // log probability of the label
  float* sum_squares;     // of the probabilities
};

// Returns the first row that holds a NaN or +inf or nothing but -inf, or -1.
int64_t softmax_statistics(const float* logits, const int64_t* labels, int64_t n, int64_t classes, StoredSoftmax out,
                           int threads);

}  // namespace vlcal
