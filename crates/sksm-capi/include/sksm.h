/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Merge equal memory pages at once, where the kernel has SKSM.
 *
 * Functions that can fail return 0, or a negative error number; sksm_explain() says what that means and what to do.
 * -ENOSYS is always: this kernel cannot. Merging never changes what memory contains.
 */

#ifndef SKSM_H
#define SKSM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 The version of this header.
 */
#define SKSM_VERSION_MAJOR 0
#define SKSM_VERSION_MINOR 1
#define SKSM_VERSION_PATCH 0
#define SKSM_VERSION "0.1.0"

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
 The running kernel merges: pages are merged when a call returns.
 */
#define SKSM_SUPPORT_MERGE 1

/*
 It has only KSM: a kernel thread may merge pages some time later.
 */
#define SKSM_SUPPORT_KSM 2

/*
 It has neither.
 */
#define SKSM_SUPPORT_NONE 3

#ifdef __cplusplus
extern "C" {
#endif

/*
 The version of the library that the program runs with, as SKSM_VERSION is that of the header that it was built with.
 */
const char *sksm_version(void);

/*
 What the running kernel offers: one of SKSM_SUPPORT_MERGE and so on. Asks it once and remembers the answer, also for children.

 It does not believe the number of MADV_MERGE, which another kernel may have given to another advice: the engine must name it in
 sysfs or, where that cannot be seen, be in proc where that can, and a page that is mapped for it and merged must keep its bytes.
 Until then no function gives the advice. The first call takes a dozen system calls at most; a program that puts itself under a
 seccomp filter makes it before. Where the answer cannot be found out it is what there is besides, and the next call asks again.
 */
int sksm_get_support(void);

/*
 Merges the whole pages within the range: it is rounded inward. -ENOSYS: this kernel has no
 MADV_MERGE; nothing was done. -EAGAIN: no memory for it, or nothing to find that out with. -EPERM: something refuses to ask the
 kernel, as a seccomp filter does; nothing was done.
 */
int sksm_merge(const void *addr,
               size_t len);

/*
 Merges exactly this range, which must start at a page.
 */
int sksm_merge_exact(const void *addr, size_t len);

/*
 Gives every page that holds any of these bytes its own copy again, whoever of SKSM and KSM had merged it: the range is rounded
 outward, so that nothing of it stays in a page that another process has as well. -ENOSYS: this kernel merges nothing.
 -EAGAIN: there is no memory for more copies; those that were made stay.
 */
int sksm_unmerge(const void *addr,
                 size_t len);

/*
 The same for exactly this range, which must start at a page.
 */
int sksm_unmerge_exact(const void *addr, size_t len);

/*
 Hands the whole pages within the range to KSM, whose kernel thread may merge them some time later. No other function does so.
 */
int sksm_advise_ksm(const void *addr,
                    size_t len);

/*
 Merges all mappings of these kinds, a sum of SKSM_TEXT and so on, in a process: 0 is this one. Others need the permissions
 of process_madvise(2). At advised, unless it is NULL, it leaves the number of bytes of the mappings that were merged, 0
 after an error. Mappings that are refused, as they have gone meanwhile, are left out; if all are, it returns why the first one
 was.
 */
int sksm_merge_process(pid_t pid,
                       unsigned int kinds,
                       size_t *advised);

/*
 Gives all pages of a process that SKSM or KSM has merged their own copies again: 0 is this one, others need the permissions of
 process_madvise(2). It takes the memory that merging had saved. At advised, unless it is NULL, it leaves the number of bytes
 of the mappings that were gone through, 0 after an error. Mappings that are refused, as they have gone meanwhile, are left out;
 if all are, it returns why the first one was.
 */
int sksm_unmerge_process(pid_t pid,
                         size_t *advised);

/*
 Bytes of a process's memory that are merged, by SKSM or KSM, left at bytes; process 0 is this one.
 */
int sksm_merged_bytes(pid_t pid, uint64_t *bytes);

/*
 Writes len bytes over code at addr: makes its pages writable, writes, restores their protection, makes the new code
 visible to all threads, and merges the pages if merge is not 0. No thread may run these bytes meanwhile. -ENOSYS: this kernel
 has no MADV_MERGE; the patch is in place all the same. After any other error it may be or not, as merging comes last: the bytes at
 addr tell.
 */
int sksm_patch(void *addr,
               const void *bytes,
               size_t len,
               int merge);

/*
 Puts these bytes into the store of this user, on any kernel, and tells where they are to be read from now on: at the start of a
 page, read-only, and in memory once for all processes of the user that freeze the same. The caller may then free his own copy,
 which nobody may write while this runs. -EINVAL: a pointer is NULL, or there are no bytes. sksm_store_explain() says what stood
 against it. The store is in /dev/shm/sksm-UID, or the directory that SKSM_STORE_DIR names.
 */
int sksm_store_freeze(const void *data,
                      size_t len,
                      const void **frozen);

/*
 Gives frozen bytes back, which nobody may read any more: as many as were frozen.
 */
int sksm_store_release(const void *frozen, size_t len);

/*
 Shares code that this process has patched, of the library with this name (libc.so.6), or of all objects if it is NULL, with the
 processes of this user that have patched it alike; returns how many pages are shared now. The process must have one thread. What
 stood against sharing some of it, sksm_store_explain() says.
 */
ptrdiff_t sksm_store_share_text(const char *name);

/*
 Removes what nobody uses from the store; returns how many bytes that were.
 */
ptrdiff_t sksm_store_collect(void);

/*
 What stood against the last call of this thread about the store that failed, in words; they are valid for ever.
 */
const char *sksm_store_explain(void);

/*
 What a returned number means and what to do about it, in words. The text is valid for ever.
 */
const char *sksm_explain(int status);

#ifdef __cplusplus
}
#endif

#endif  /* SKSM_H */
