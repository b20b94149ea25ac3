/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel that SKSM is built for calls otherwise than the newest one:
 * Linux 6.12.
 */
#ifndef _MM_SKSM_BASE_H
#define _MM_SKSM_BASE_H

#include <linux/ns_common.h>
#include <linux/pagemap.h>
#include <linux/pagevec.h>
#include <linux/rmap.h>
#include <linux/sched/coredump.h>
#include <linux/swap.h>
#include <linux/userfaultfd_k.h>

/* Of the number that a namespace has for itself, and none after it. */
static inline u64 sksm_ns_id(const struct ns_common *ns)
{
	return ns->serial;
}

/* That in which the memory was made by exec. */
static inline struct user_namespace *sksm_mm_user_ns(struct mm_struct *mm,
						     struct task_struct *owner)
{
	return mm->user_ns;
}

static inline bool sksm_task_dumpable(struct task_struct *owner, struct mm_struct *mm)
{
	return owner && get_dumpable(mm) == SUID_DUMP_USER;
}

#define linear_anon_page_index(vma, addr)	linear_page_index(vma, addr)
#define vma_anon_address(vma, pgoff, nr)	vma_address(vma, pgoff, nr)
#define anon_rmap_tree_iter_first(anon_vma, first, last) \
	anon_vma_interval_tree_iter_first(&(anon_vma)->rb_root, first, last)
#define anon_rmap_tree_iter_next(chain, first, last) \
	anon_vma_interval_tree_iter_next(chain, first, last)

#define system_dfl_wq				system_unbound_wq

/* An insertion that finds no room makes some at once, of single pages. */
#define SKSM_GROWN_BY_WORKER

#define pte_uffd(pte)				pte_uffd_wp(pte)
#define pte_mkuffd(pte)				pte_mkuffd_wp(pte)
#define zero_pfn(addr)				my_zero_pfn(addr)

/* Accesses cannot be trapped. */
static inline pte_t sksm_pte_arm(struct vm_area_struct *vma, pte_t pte)
{
	return pte;
}

#endif /* _MM_SKSM_BASE_H */
