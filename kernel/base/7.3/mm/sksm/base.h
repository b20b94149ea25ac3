/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel that SKSM is built for calls otherwise than the newest one:
 * Linux 7.3, the newest.
 */
#ifndef _MM_SKSM_BASE_H
#define _MM_SKSM_BASE_H

#include <linux/folio_batch.h>
#include <linux/ns_common.h>
#include <linux/sched/exec_state.h>
#include <linux/userfaultfd_k.h>

/* Of the number that a namespace has for itself, and none after it. */
static inline u64 sksm_ns_id(const struct ns_common *ns)
{
	return ns->ns_id;
}

/*
 * Of a hash table: who inserts may hold spinlocks with interrupts off, where a
 * table must not be had from vmalloc().
 */
#define SKSM_GROWN_BY_WORKER	.insecure_elasticity = true,

/* That in which the memory was made by exec. RCU read lock held. */
static inline struct user_namespace *sksm_mm_user_ns(struct mm_struct *mm,
						     struct task_struct *owner)
{
	return task_exec_state_rcu(owner)->user_ns;
}

/* RCU read lock held. */
static inline bool sksm_task_dumpable(struct task_struct *owner, struct mm_struct *mm)
{
	return owner && READ_ONCE(task_exec_state_rcu(owner)->dumpable) == TASK_DUMPABLE_OWNER;
}

/* What userfaultfd traps each access to stays so. */
static inline pte_t sksm_pte_arm(struct vm_area_struct *vma, pte_t pte)
{
	return userfaultfd_rwp(vma) ? pte_modify(pte, PAGE_NONE) : pte;
}

#endif /* _MM_SKSM_BASE_H */
