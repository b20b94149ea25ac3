/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Merge equal memory pages at once, where the kernel has SKSM.
 *
 * Functions that can fail return 0, or a negative error number; sksm_explain() says what that means and what to do.
 * Merging never changes what memory contains.
 */

#ifndef SKSM_H
#define SKSM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 Executable memory: text that was patched, or made by a JIT compiler.
 */
#define SKSM_TEXT 1

/*
 Private memory of a file that is not executable: variables of programs and libraries.
 */
#define SKSM_DATA 2

/*
 Private anonymous memory.
 */
#define SKSM_HEAP 4

/*
 The main thread's stack.
 */
#define SKSM_STACK 8

/*
 What the running kernel offers.
 */
enum sksm_support {
  /*
   Pages are merged when a call returns.
   */
  SKSM_SUPPORT_MERGE = 1,
  /*
   Only KSM: a kernel thread may merge pages some time later.
   */
  SKSM_SUPPORT_KSM = 2,
  /*
   Neither.
   */
  SKSM_SUPPORT_NONE = 3,
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 What the running kernel offers. Asks it once and remembers the answer.
 */
enum sksm_support sksm_get_support(void);

/*
 Merges the whole pages within the range: it is rounded inward. -EINVAL: this kernel has no MADV_MERGE.
 */
int sksm_merge(const void *addr,
               size_t len);

/*
 Merges exactly this range, which must start at a page.
 */
int sksm_merge_exact(const void *addr, size_t len);

/*
 Hands the whole pages within the range to KSM, whose kernel thread may merge them some time later. No other function does so.
 */
int sksm_advise_ksm(const void *addr,
                    size_t len);

/*
 Merges all mappings of these kinds, a sum of SKSM_TEXT and so on, in a process: 0 is this one. Others need the permissions
 of process_madvise(2). At `advised`, unless it is NULL, it leaves the number of bytes of the mappings that were merged, 0
 after an error. Mappings that are refused, as they have gone meanwhile, are left out; if all are, it returns why the first one
 was.

 # Safety
 `advised` must be NULL or valid for a write.
 */
int sksm_merge_process(pid_t pid,
                       unsigned int kinds,
                       size_t *advised);

/*
 Bytes of a process's memory that are merged, by SKSM or KSM, left at `bytes`; process 0 is this one.

 # Safety
 `bytes` must be valid for a write.
 */
int sksm_merged_bytes(pid_t pid,
                      uint64_t *bytes);

/*
 Writes `len` bytes over code at `addr`: makes its pages writable, writes, restores their protection, makes the new code
 visible to all threads, and merges the pages if `merge` is not 0. No thread may run these bytes meanwhile. -EINVAL from the
 merge means that this kernel has none; the patch is in place all the same.

 # Safety
 `bytes` must be valid for reads of `len` bytes, and `addr` be code that no thread runs meanwhile.
 */
int sksm_patch(void *addr,
               const void *bytes,
               size_t len,
               int merge);

/*
 What a returned number means and what to do about it, in words. The text is valid for ever.
 */
const char *sksm_explain(int status);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SKSM_H */
