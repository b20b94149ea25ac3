/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What SKSM's Rust code needs of mm's macros and static inlines. Every
 * function here wraps a few of them, or a fixed loop around one; what is to
 * happen is decided in Rust. bindgen reads this file.
 */
#ifndef _MM_SKSM_GLUE_H
#define _MM_SKSM_GLUE_H

#include <linux/kobject.h>
#include <linux/ksm.h>
#include <linux/llist.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/random.h>
#include <linux/rhashtable.h>
#include <linux/rmap.h>
#include <linux/siphash.h>
#include <linux/sksm.h>
#include <linux/swap.h>
#include <linux/sysfs.h>
#include <linux/vmstat.h>

#include "base.h"

/* What the table compares: all of it. */
struct sksm_key {
	u64 hash;
	u64 domain;
};

/* The start of all that stands in the table. */
struct sksm_link {
	struct rhash_head head;
	struct sksm_key key;
};

/* The start of a node; slot counts while the node sleeps. */
struct sksm_sleeper {
	struct sksm_link link;
	void *older;
	unsigned long slot;
};

/* Says that there are pages whose sample is another content's. */
struct sksm_crowd {
	struct sksm_link link;
	u64 members;
	struct rcu_head rcu;
};

/* Index */
int sksm_index_init(void);
struct sksm_link *sksm_index_lookup(const struct sksm_key *key);
int sksm_index_insert(struct sksm_link *link);
int sksm_index_replace(struct sksm_link *old, struct sksm_link *new);
int sksm_index_remove(struct sksm_link *link);
void sksm_crowd_free(struct sksm_crowd *crowd);
int sksm_asleep_insert(struct sksm_sleeper *sleeper);
struct sksm_sleeper *sksm_asleep_lookup(unsigned long slot);
void sksm_asleep_remove(struct sksm_sleeper *sleeper);
int sksm_slot_users(unsigned long entry);
#define SKSM_SHARDS 256
unsigned long sksm_shard_lock(unsigned int shard);
void sksm_shard_unlock(unsigned int shard, unsigned long flags);

/* Folios */
bool sksm_folio_try_get(struct folio *folio);
void sksm_folio_get(struct folio *folio);
void sksm_folio_put(struct folio *folio);
void sksm_folio_batch_init(struct folio_batch *folios);
void sksm_folio_batch_put(struct folio_batch *folios, struct folio *folio);
void sksm_folio_batch_release(struct folio_batch *folios);
bool sksm_folio_trylock(struct folio *folio);
int sksm_folio_lock_killable(struct folio *folio);
bool sksm_folio_is_plain(struct folio *folio);
bool sksm_folio_is_unmerged_anon(struct folio *folio);
bool sksm_folio_is_large(struct folio *folio);
bool sksm_folio_in_swapcache(struct folio *folio);
bool sksm_folio_maybe_dma_pinned(struct folio *folio);
void sksm_folio_mark_dirty(struct folio *folio);
bool sksm_folio_mapped(struct folio *folio);
int sksm_folio_mapcount(struct folio *folio);
int sksm_folio_other_refs(struct folio *folio);
bool sksm_folio_ref_freeze(struct folio *folio, int count);
void sksm_folio_ref_unfreeze(struct folio *folio, int count);
int sksm_folio_nid(struct folio *folio);
unsigned long sksm_folio_mapping(struct folio *folio);
void sksm_folio_set_mapping(struct folio *folio, unsigned long mapping);
unsigned long sksm_folio_index(struct folio *folio);
unsigned long sksm_folio_slot(struct folio *folio);
bool sksm_folio_uptodate(struct folio *folio);
void sksm_folio_set_index(struct folio *folio, unsigned long index);
bool sksm_folio_is_exclusive(struct folio *folio);
bool sksm_folio_share(struct folio *folio);
int sksm_folio_split(struct folio *folio);
void *sksm_folio_map(struct folio *folio);
void sksm_folio_unmap(void *addr);
void sksm_folio_add_rmap(struct folio *folio, struct vm_area_struct *vma, unsigned long addr);
void sksm_folio_remove_rmap(struct folio *folio, struct vm_area_struct *vma);
struct folio *sksm_folio_replacement(struct folio *old, struct folio *copy);
void sksm_folio_replace_at(struct folio *old, struct vm_area_struct *vma, unsigned long addr,
			   struct folio *new);

/* Page tables */
enum {
	SKSM_TABLE_ENTRIES = PTRS_PER_PTE,
};

pmd_t *sksm_find_pmd(struct mm_struct *mm, unsigned long addr, unsigned long end,
		     unsigned long *next);
struct folio *sksm_pmd_get_folio(struct vm_area_struct *vma, pmd_t *pmd, unsigned long addr);
pte_t *sksm_pte_lock(struct mm_struct *mm, pmd_t *pmd, unsigned long addr, spinlock_t **ptl);
void sksm_pte_unlock(pte_t *pte, spinlock_t *ptl);
struct folio *sksm_pte_next_folio(struct vm_area_struct *vma, unsigned long start, pte_t *first,
				  unsigned long *slot, unsigned long end);
bool sksm_pte_clear_if(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep,
		       struct folio *folio, pte_t *old);
void sksm_pte_set(struct mm_struct *mm, unsigned long addr, pte_t *ptep, pte_t pte);
bool sksm_pte_write(pte_t pte);
bool sksm_pte_dirty(pte_t pte);
pte_t sksm_pte_clean_readonly(pte_t pte);
pte_t sksm_pte_for_folio(struct folio *folio, struct vm_area_struct *vma, pte_t old);
pte_t sksm_pte_for_zero(struct vm_area_struct *vma, pte_t old);
bool sksm_pte_adopt_zero(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep);
void sksm_flush_tlb(struct vm_area_struct *vma, unsigned long start, unsigned long end);
bool sksm_tlb_flush_pending(struct mm_struct *mm);
void sksm_notifier_start(struct mm_struct *mm, struct mmu_notifier_range *range,
			 unsigned long start, unsigned long end);
void sksm_notifier_end(struct mmu_notifier_range *range);
void sksm_account_zero_page(struct mm_struct *mm);

/* Reverse mapping */
struct anon_vma *sksm_anon_vma_get(struct anon_vma *anon_vma);
void sksm_anon_vma_put(struct anon_vma *anon_vma);
bool sksm_anon_vma_trylock(struct anon_vma *anon_vma);
void sksm_anon_vma_lock(struct anon_vma *anon_vma);
void sksm_anon_vma_unlock(struct anon_vma *anon_vma);
struct anon_vma_chain *sksm_anon_vma_first(struct anon_vma *anon_vma, unsigned long pgoff);
struct anon_vma_chain *sksm_anon_vma_next(struct anon_vma_chain *chain, unsigned long pgoff);
unsigned long sksm_vma_address(struct vm_area_struct *vma, unsigned long pgoff);
unsigned long sksm_vma_pgoff(struct vm_area_struct *vma, unsigned long addr);
bool sksm_mapped_at(struct folio *folio, struct vm_area_struct *vma, unsigned long addr);
void sksm_collect_procs(struct folio *folio, struct vm_area_struct *vma, unsigned long addr,
			struct list_head *to_kill, int force_early);

/* VMAs */
enum {
	SKSM_VM_LOCKED = VM_LOCKED,
	SKSM_VM_DONTDUMP = VM_DONTDUMP,
	SKSM_VM_WIPEONFORK = VM_WIPEONFORK,
};

bool sksm_vma_is_anonymous(struct vm_area_struct *vma);
unsigned long sksm_vma_flags(struct vm_area_struct *vma);
unsigned long sksm_vma_start(struct vm_area_struct *vma);
unsigned long sksm_vma_end(struct vm_area_struct *vma);

/* Who a process is to others. Namespaces by numbers that are used once. */
struct sksm_owner {
	u32 uid;
	u32 euid;
	u32 suid;
	u64 mm_user_ns;
	u64 user_ns;
	u64 cgroup_ns;
};

/* Processes */
bool sksm_is_off(void);
bool sksm_is_current_mm(struct mm_struct *mm);
bool sksm_mm_owner(struct mm_struct *mm, struct sksm_owner *who);
bool sksm_mm_dumpable(struct mm_struct *mm);
struct mem_cgroup *sksm_mm_memcg(struct mm_struct *mm);
struct mem_cgroup *sksm_memcg_parent(struct mem_cgroup *memcg);
u64 sksm_memcg_serial(struct mem_cgroup *memcg);
unsigned int sksm_memcg_mark(struct mem_cgroup *memcg);
struct mm_struct *sksm_next_mm(int *nr);
int sksm_mmap_read_lock_killable(struct mm_struct *mm);
void sksm_mmap_read_unlock(struct mm_struct *mm);
bool sksm_mmap_lock_is_contended(struct mm_struct *mm);
bool sksm_fatal_signal_pending(void);
unsigned int sksm_this_cpu(void);
void sksm_cond_resched(void);
void sksm_drain_local_batches(void);

/* Counters */
enum {
	SKSM_STAT_CALLS,
	SKSM_STAT_SCANNED,
	SKSM_STAT_MERGED,
	SKSM_STAT_PUBLISHED,
	SKSM_STAT_WITHDRAWN,
	SKSM_STAT_BUSY,
	SKSM_STAT_REFUSED,
	SKSM_STAT_SWAPPED,
	SKSM_STAT_SWAPPED_IN,
	SKSM_STAT_RESCUED,
	SKSM_STAT_PAGES,
	SKSM_STAT_ASLEEP,
	SKSM_STAT_SHARED,
	SKSM_STAT_SHARING,
	SKSM_STAT_METADATA,
	SKSM_NR_STATS,
};

void sksm_stat_add(unsigned int stat, long count);
long sksm_stat_read(unsigned int stat);
void sksm_mm_add_merged(struct mm_struct *mm, long mappings);
void sksm_mm_add_published(struct mm_struct *mm, long pages);
bool sksm_mm_take_merged(struct mm_struct *mm);
bool sksm_mm_take_published(struct mm_struct *mm);
void sksm_mm_add_swapped(struct mm_struct *mm, long mappings);
bool sksm_mm_take_swapped(struct mm_struct *mm);

/* Observability */
void sksm_count(enum vm_event_item event, unsigned long pages);
void sksm_trace_call(struct mm_struct *mm, unsigned long scanned, unsigned long merged,
		     unsigned long published, unsigned long busy);
void sksm_trace_merge(struct mm_struct *mm, unsigned long addr, struct folio *folio);
void sksm_trace_publish(struct mm_struct *mm, unsigned long addr, struct folio *folio);
void sksm_trace_withdraw(struct mm_struct *mm, unsigned long addr, struct folio *folio);
void sksm_trace_busy(struct mm_struct *mm, unsigned long addr);

/* Deferred release of nodes: sksm_release() runs on a workqueue. */
void sksm_release_init(void);
void sksm_retire(struct llist_node *node);
void sksm_release(struct llist_node *nodes);
int sksm_init(void);

#endif /* _MM_SKSM_GLUE_H */
