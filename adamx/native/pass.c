/* One pass over memory, as a handler of XLA's foreign function interface.

   Generated before this text: N_SCALARS, N_IN, N_OUT, and either `elements`, which writes
   arrays, or `reduce`, which makes numbers of them, with what puts the parts of several
   threads together. Arguments are the scalars, then arrays; a table says of each leaf
   which parts of which arrays are its own, and of which results. An argument may share
   its memory with a result.

   Threads: the caller and tasks on XLA's own pool take chunks from one counter until none
   is left. The caller waits for chunks that a thread has taken, never for a task that has
   not started: there may be no thread for it. */

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define ARRAYS (3 + N_SPANS) /* where they begin in the entry of a leaf */
#define ENTRY (ARRAYS + 2 * (N_IN + N_OUT)) /* of a leaf, in the table of a call */
#define CHUNK 32768
#define ALONE (2 * CHUNK) /* fewer elements are not worth a second thread */

typedef struct {
  int64_t begin; /* first chunk of the leaf */
  int64_t units; /* rows, or elements where rows do not matter */
  int64_t share; /* units of a chunk */
  int64_t rows;  /* of one matrix: the last axis but one */
  int64_t cols;
  const int64_t* spans; /* how many rows share a number */
#ifdef REDUCES
  int64_t n[COLUMN_SUMS + 1]; /* numbers by column, of each sum */
  int64_t column;             /* of the leaves before it */
#endif
  void* const* in;
  void* const* out;
} leaf_t;

typedef struct {
  atomic_int references;
  atomic_int workers;
  atomic_llong next;
  atomic_llong done;
  int64_t chunks;
  int64_t leaves;
  const void* const* scalars;
  leaf_t* leaf;
#ifdef REDUCES
  whole_t* whole;      /* by chunk, so that threads do not change the sum's order */
  char* columns;       /* by thread: the order of a largest element is the same */
  int64_t all_columns; /* numbers of all leaves */
#endif
} job_t;

static void release(job_t* job) {
  if (atomic_fetch_sub(&job->references, 1) == 1) free(job);
}

static void run_chunk(job_t* job, int64_t chunk, int worker) {
  int64_t low = 0, high = job->leaves - 1;
  while (low < high) {
    int64_t middle = (low + high + 1) / 2;
    if (job->leaf[middle].begin <= chunk) low = middle;
    else high = middle - 1;
  }
  const leaf_t* leaf = &job->leaf[low];
  int64_t begin = (chunk - leaf->begin) * leaf->share;
  int64_t end = begin + leaf->share < leaf->units ? begin + leaf->share : leaf->units;
#ifdef REDUCES
  char* columns = job->columns + (worker * job->all_columns + leaf->column) * COLUMN_BYTES;
  reduce(leaf->in, leaf->out, job->scalars, &job->whole[chunk], columns, leaf->n, begin,
         end, leaf->rows, leaf->cols, leaf->spans);
#else
  (void)worker;
  elements(leaf->in, leaf->out, job->scalars, begin, end, leaf->rows, leaf->cols,
           leaf->spans);
#endif
}

static void work(job_t* job) {
#if defined(__x86_64__)
  /* Numbers below the range of float32 are zero, as XLA has them. */
  unsigned int control = _mm_getcsr();
  _mm_setcsr(control | 0x8040);
#endif
  int worker = -1;
  for (;;) {
    long long chunk = atomic_fetch_add(&job->next, 1);
    if (chunk >= job->chunks) break;
    if (worker < 0) worker = atomic_fetch_add(&job->workers, 1);
    run_chunk(job, chunk, worker);
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

static int64_t threads_for(XLA_FFI_CallFrame* frame, int64_t chunks, int64_t elements) {
  int64_t threads = 1;
  if (elements < ALONE) return 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, 0, frame->ctx, &threads};
  XLA_FFI_Error* error = frame->api->XLA_FFI_ThreadPool_NumThreads(&count);
  if (error) {
    discard(frame->api, error);
    return 1;
  }
  if (threads > chunks) threads = chunks;
  return threads < 1 ? 1 : threads;
}

static void call_helpers(XLA_FFI_CallFrame* frame, job_t* job, int64_t threads) {
  for (int64_t i = 1; i < threads; i++) {
    atomic_fetch_add(&job->references, 1);
    XLA_FFI_ThreadPool_Schedule_Args schedule = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, 0, frame->ctx, task, job};
    XLA_FFI_Error* error = frame->api->XLA_FFI_ThreadPool_Schedule(&schedule);
    if (error) {
      discard(frame->api, error);
      release(job);
      return;
    }
  }
}

/* How a leaf is cut into chunks, from its entry in the table; returns its size. */
static int64_t measure(const int64_t* entry, leaf_t* leaf) {
  int64_t size = entry[0];
  leaf->rows = entry[1];
  leaf->cols = entry[2];
  leaf->spans = entry + 3;
#ifdef BY_ROWS
  leaf->units = size / leaf->cols;
  leaf->share = leaf->cols > CHUNK ? 1 : CHUNK / leaf->cols;
#ifdef PACKED
  leaf->share += leaf->share * leaf->cols & 1; /* no two threads share a byte */
#endif
#else
  leaf->units = size;
  leaf->share = CHUNK;
#endif
  return size;
}

#ifdef REDUCES
/* How many numbers by column the sums of a leaf have. */
static int64_t measure_columns(leaf_t* leaf, int64_t size) {
  int64_t all = 0, matrix = leaf->rows * leaf->cols;
  count_columns(matrix ? size / matrix : 0, leaf->rows, leaf->cols, leaf->spans, leaf->n);
  for (int i = 0; i < COLUMN_SUMS; i++) all += leaf->n[i];
  return all;
}
#endif

static int64_t chunks_of(const leaf_t* leaf) {
  return (leaf->units + leaf->share - 1) / leaf->share;
}

static XLA_FFI_Error* failure(const XLA_FFI_Api* api, const char* message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, 0, message,
                                    XLA_FFI_Error_Code_INTERNAL};
  return api->XLA_FFI_Error_Create(&args);
}

/* The table of leaves, the call's only attribute; returns how many leaves it has. */
static int64_t table_of(const XLA_FFI_CallFrame* frame, const int64_t** table) {
  const XLA_FFI_Attrs* given = &frame->attrs;
  if (given->size != 1 || given->types[0] != XLA_FFI_AttrType_ARRAY) return -1;
  const XLA_FFI_Array* array = (const XLA_FFI_Array*)given->attrs[0];
  if (array->dtype != XLA_FFI_DataType_S64 || array->size % ENTRY) return -1;
  *table = (const int64_t*)array->data;
  return (int64_t)array->size / ENTRY;
}

/* Where the arrays are of which an entry has the numbers, and the bytes before them. */
static void locate(const int64_t* entry, int64_t n, XLA_FFI_Buffer** buffers, void** at) {
  for (int64_t i = 0; i < n; i++)
    at[i] = (char*)buffers[entry[2 * i]]->data + entry[2 * i + 1];
}

static XLA_FFI_Error* run(XLA_FFI_CallFrame* frame) {
  const int64_t* table = 0;
  int64_t leaves = table_of(frame, &table);
  if (leaves < 0 || frame->args.size < N_SCALARS)
    return failure(frame->api, "adamx: a native pass got other arrays than it was made for");
  XLA_FFI_Buffer** args = (XLA_FFI_Buffer**)frame->args.args;
  XLA_FFI_Buffer** rets = (XLA_FFI_Buffer**)frame->rets.rets;

  int64_t chunks = 0, total = 0, columns = 0;
  for (int64_t i = 0; i < leaves; i++) {
    leaf_t leaf;
    int64_t size = measure(table + i * ENTRY, &leaf);
    total += size;
    chunks += chunks_of(&leaf);
#ifdef REDUCES
    columns += measure_columns(&leaf, size);
#endif
  }
  int64_t threads = threads_for(frame, chunks, total);
  /* One block: it may outlive this call, in tasks that find nothing left to do. (Of the
     size of the leaves' scales by column for each thread, where such are found.) */
  size_t bytes =
      sizeof(job_t) + leaves * sizeof(leaf_t) +
      (N_SCALARS + leaves * (N_IN + N_OUT)) * sizeof(void*);
#ifdef REDUCES
  size_t whole = (bytes + 63) / 64 * 64;
  size_t by_column = (whole + chunks * sizeof(whole_t) + 63) / 64 * 64;
  bytes = by_column + threads * columns * COLUMN_BYTES;
#endif
  job_t* job = (job_t*)malloc(bytes);
  if (!job) return failure(frame->api, "adamx: out of memory for a native pass");
  leaf_t* leaf = (leaf_t*)(job + 1);
  void** data = (void**)(leaf + leaves);
  for (int64_t i = 0; i < N_SCALARS; i++) data[i] = args[i]->data;
  int64_t begin = 0;
  columns = 0;
  for (int64_t i = 0; i < leaves; i++) {
    const int64_t* entry = table + i * ENTRY;
    void** own = data + N_SCALARS + i * (N_IN + N_OUT);
    int64_t size = measure(entry, &leaf[i]);
    locate(entry + ARRAYS, N_IN, args, own);
    locate(entry + ARRAYS + 2 * N_IN, N_OUT, rets, own + N_IN);
    leaf[i].begin = begin;
#ifdef REDUCES
    leaf[i].column = columns;
    columns += measure_columns(&leaf[i], size);
#else
    (void)size;
#endif
    leaf[i].in = own;
    leaf[i].out = own + N_IN;
    begin += chunks_of(&leaf[i]);
  }
  atomic_init(&job->references, 1);
  atomic_init(&job->workers, 0);
  atomic_init(&job->next, 0);
  atomic_init(&job->done, 0);
  job->chunks = chunks;
  job->leaves = leaves;
  job->scalars = (const void* const*)data;
  job->leaf = leaf;
#ifdef REDUCES
  job->whole = (whole_t*)((char*)job + whole);
  job->columns = (char*)job + by_column;
  job->all_columns = columns;
  for (int64_t w = 0; w < threads; w++)
    for (int64_t i = 0; i < leaves; i++)
      start_columns(job->columns + (w * columns + leaf[i].column) * COLUMN_BYTES,
                    leaf[i].n);
#endif
  call_helpers(frame, job, threads);
  work(job);
  for (int spins = 0; atomic_load(&job->done) < chunks; spins++)
    if (spins > 100) sched_yield();
#ifdef REDUCES
  int workers = atomic_load(&job->workers);
  for (int64_t i = 0; i < leaves; i++) {
    int64_t last = leaf[i].begin + chunks_of(&leaf[i]);
    whole_t a;
    start_whole(&a);
    for (int64_t c = leaf[i].begin; c < last; c++) add_whole(&a, &job->whole[c]);
    finish_whole(leaf[i].out, &a);
    char* first = job->columns + leaf[i].column * COLUMN_BYTES;
    for (int w = 1; w < workers; w++)
      add_columns(first, first + (size_t)w * columns * COLUMN_BYTES, leaf[i].n);
    finish_columns(leaf[i].out, first, leaf[i].n);
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
