/* One pass over memory, as a handler of XLA's foreign function interface.

   Generated before this text: N_SCALARS, N_IN, N_OUT, and either `elements` (writes) or
   `reduce` with N_OUT == 1 (one number for each leaf). Arguments are the scalars, then the
   arrays of each leaf; results are the arrays (or the number) of each leaf.

   Threads: the caller and tasks on XLA's own pool take chunks from one counter until none
   is left. The caller waits for chunks that a thread has taken, never for a task that has
   not started: there may be no thread for it. */

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define CHUNK 32768
#define ALONE (2 * CHUNK) /* fewer elements are not worth a second thread */

typedef struct {
  int64_t begin; /* first chunk of the leaf */
  int64_t size;  /* elements */
  void* const* in;
  void* const* out;
} leaf_t;

typedef struct {
  atomic_int references;
  atomic_llong next;
  atomic_llong done;
  int64_t chunks;
  int64_t leaves;
  const void* const* scalars;
  leaf_t* leaf;
#ifdef REDUCES
  accumulator_t* partial; /* by chunk, so that threads do not change the sum's order */
#endif
} job_t;

static void release(job_t* job) {
  if (atomic_fetch_sub(&job->references, 1) == 1) free(job);
}

static void run_chunk(job_t* job, int64_t chunk) {
  int64_t low = 0, high = job->leaves - 1;
  while (low < high) {
    int64_t middle = (low + high + 1) / 2;
    if (job->leaf[middle].begin <= chunk) low = middle;
    else high = middle - 1;
  }
  const leaf_t* leaf = &job->leaf[low];
  int64_t begin = (chunk - leaf->begin) * CHUNK;
  int64_t end = begin + CHUNK < leaf->size ? begin + CHUNK : leaf->size;
#ifdef REDUCES
  job->partial[chunk] = reduce(leaf->in, job->scalars, begin, end);
#else
  elements(leaf->in, leaf->out, job->scalars, begin, end);
#endif
}

static void work(job_t* job) {
#if defined(__x86_64__)
  /* Numbers below the range of float32 are zero, as XLA has them. */
  unsigned int control = _mm_getcsr();
  _mm_setcsr(control | 0x8040);
#endif
  for (;;) {
    long long chunk = atomic_fetch_add(&job->next, 1);
    if (chunk >= job->chunks) break;
    run_chunk(job, chunk);
    atomic_fetch_add(&job->done, 1);
  }
#if defined(__x86_64__)
  _mm_setcsr(control);
#endif
}

static void task(void* data) {
  work((job_t*)data);
  release((job_t*)data);
}

static void discard(const XLA_FFI_Api* api, XLA_FFI_Error* error) {
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, 0, error};
  api->XLA_FFI_Error_Destroy(&args);
}

static void call_helpers(XLA_FFI_CallFrame* frame, job_t* job, int64_t elements_in_all) {
  const XLA_FFI_Api* api = frame->api;
  int64_t threads = 1;
  if (elements_in_all < ALONE || job->chunks < 2) return;
  XLA_FFI_ThreadPool_NumThreads_Args count = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, 0, frame->ctx, &threads};
  XLA_FFI_Error* error = api->XLA_FFI_ThreadPool_NumThreads(&count);
  if (error) {
    discard(api, error);
    return;
  }
  if (threads > job->chunks) threads = job->chunks;
  for (int64_t i = 1; i < threads; i++) {
    atomic_fetch_add(&job->references, 1);
    XLA_FFI_ThreadPool_Schedule_Args schedule = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, 0, frame->ctx, task, job};
    error = api->XLA_FFI_ThreadPool_Schedule(&schedule);
    if (error) {
      discard(api, error);
      release(job);
      return;
    }
  }
}

static XLA_FFI_Error* failure(const XLA_FFI_Api* api, const char* message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, 0, message,
                                    XLA_FFI_Error_Code_INTERNAL};
  return api->XLA_FFI_Error_Create(&args);
}

static XLA_FFI_Error* run(XLA_FFI_CallFrame* frame) {
  int64_t n_args = frame->args.size, n_rets = frame->rets.size;
  int64_t leaves = n_rets / N_OUT;
  if (n_rets != leaves * N_OUT || n_args != N_SCALARS + leaves * N_IN)
    return failure(frame->api, "adamx: a native pass got other arrays than it was made for");
  XLA_FFI_Buffer** args = (XLA_FFI_Buffer**)frame->args.args;
  XLA_FFI_Buffer** rets = (XLA_FFI_Buffer**)frame->rets.rets;

  int64_t chunks = 0, total = 0;
  for (int64_t i = 0; i < leaves; i++) {
    XLA_FFI_Buffer* first = args[N_SCALARS + i * N_IN];
    int64_t size = 1;
    for (int64_t d = 0; d < first->rank; d++) size *= first->dims[d];
    total += size;
    chunks += (size + CHUNK - 1) / CHUNK;
  }
  /* One block: it may outlive this call, in tasks that find nothing left to do. */
  size_t bytes = sizeof(job_t) + leaves * sizeof(leaf_t) +
                 (n_args + n_rets) * sizeof(void*);
#ifdef REDUCES
  bytes += chunks * sizeof(accumulator_t) + 64;
#endif
  job_t* job = (job_t*)malloc(bytes);
  if (!job) return failure(frame->api, "adamx: out of memory for a native pass");
  leaf_t* leaf = (leaf_t*)(job + 1);
  void** data = (void**)(leaf + leaves);
  for (int64_t i = 0; i < n_args; i++) data[i] = args[i]->data;
  for (int64_t i = 0; i < n_rets; i++) data[n_args + i] = rets[i]->data;
  int64_t begin = 0;
  for (int64_t i = 0; i < leaves; i++) {
    XLA_FFI_Buffer* first = args[N_SCALARS + i * N_IN];
    int64_t size = 1;
    for (int64_t d = 0; d < first->rank; d++) size *= first->dims[d];
    leaf[i].begin = begin;
    leaf[i].size = size;
    leaf[i].in = data + N_SCALARS + i * N_IN;
    leaf[i].out = data + n_args + i * N_OUT;
    begin += (size + CHUNK - 1) / CHUNK;
  }
  atomic_init(&job->references, 1);
  atomic_init(&job->next, 0);
  atomic_init(&job->done, 0);
  job->chunks = chunks;
  job->leaves = leaves;
  job->scalars = (const void* const*)data;
  job->leaf = leaf;
#ifdef REDUCES
  job->partial = (accumulator_t*)(((uintptr_t)(data + n_args + n_rets) + 63) & ~(uintptr_t)63);
#endif
  call_helpers(frame, job, total);
  work(job);
  for (int spins = 0; atomic_load(&job->done) < chunks; spins++)
    if (spins > 100) sched_yield();
#ifdef REDUCES
  for (int64_t i = 0; i < leaves; i++) {
    int64_t last = i + 1 < leaves ? leaf[i + 1].begin : chunks;
    accumulator_t a = FIRST;
    for (int64_t c = leaf[i].begin; c < last; c++) a = combine(a, job->partial[c]);
    finish(leaf[i].out[0], a);
  }
#endif
  release(job);
  return 0;
}

XLA_FFI_Error* adamx_pass(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Extension_Base* extension = frame->extension_start;
  if (extension && extension->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)extension)->metadata;
    metadata->api_version.struct_size = XLA_FFI_Api_Version_STRUCT_SIZE;
    metadata->api_version.extension_start = 0;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    metadata->traits = 0;
#if XLA_FFI_API_MINOR >= 2
    metadata->state_type_id.type_id = 0;
#endif
    return 0;
  }
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return 0;
  return run(frame);
}
