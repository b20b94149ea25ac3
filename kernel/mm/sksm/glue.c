// SPDX-License-Identifier: GPL-2.0-only
/*
 * mm's macros and static inlines for SKSM's Rust code, see glue.h. Each
 * function has the context rules of what it wraps.
 */
#include <linux/cred.h>
#include <linux/hugetlb.h>
#include <linux/init.h>
#include <linux/memcontrol.h>
#include <linux/sched/signal.h>
#include <linux/user_namespace.h>
#include <linux/workqueue.h>

#include <asm/tlbflush.h>

#define CREATE_TRACE_POINTS
#include <trace/events/sksm.h>

#include "../internal.h"
#include "glue.h"

/* Index */

/* The checksum is as good as random; only users of equal content must not meet. */
static u32 sksm_key_hash(const void *data, u32 len, u32 seed)
{
	const struct sksm_key *key = data;

	return jhash_3words(key->checksum, key->domain ^ key->kind, (key->domain >> 32) ^ key->nid,
			    seed);
}

static int sksm_key_cmp(struct rhashtable_compare_arg *arg, const void *obj)
{
	const struct sksm_key *a = arg->key;
	const struct sksm_key *b = &((const struct sksm_link *)obj)->key;

	return a->checksum != b->checksum || a->domain != b->domain || a->kind != b->kind ||
	       a->full != b->full || a->nid != b->nid;
}

static const struct rhashtable_params sksm_index_params = {
	.head_offset = offsetof(struct sksm_link, head),
	.key_offset = offsetof(struct sksm_link, key),
	.key_len = offsetofend(struct sksm_key, nid),
	.hashfn = sksm_key_hash,
	.obj_cmpfn = sksm_key_cmp,
	/* 32 KiB: room for a few libraries before the table has to grow. */
	.min_size = 4096,
	.automatic_shrinking = true,
};

int sksm_index_init(struct rhltable *table)
{
	return rhltable_init(table, &sksm_index_params);
}

int sksm_index_insert(struct rhltable *table, struct sksm_link *link)
{
	return rhltable_insert(table, &link->head, sksm_index_params);
}

int sksm_index_remove(struct rhltable *table, struct sksm_link *link)
{
	return rhltable_remove(table, &link->head, sksm_index_params);
}

struct sksm_link *sksm_index_lookup(struct rhltable *table, const struct sksm_key *key)
{
	struct rhlist_head *head = rhltable_lookup(table, key, sksm_index_params);

	return head ? container_of(head, struct sksm_link, head) : NULL;
}

struct sksm_link *sksm_index_next(struct sksm_link *link)
{
	struct rhlist_head *head = rcu_dereference(link->head.next);

	return head ? container_of(head, struct sksm_link, head) : NULL;
}

void sksm_index_walk_enter(struct rhltable *table, struct rhashtable_iter *iter)
{
	rhltable_walk_enter(table, iter);
}

void sksm_rcu_read_lock(void)
{
	rcu_read_lock();
}

void sksm_rcu_read_unlock(void)
{
	rcu_read_unlock();
}

/* Folios */

bool sksm_folio_try_get(struct folio *folio)
{
	return folio_try_get(folio);
}

void sksm_folio_get(struct folio *folio)
{
	folio_get(folio);
}

void sksm_folio_put(struct folio *folio)
{
	folio_put(folio);
}

/* Empties the batch. */
void sksm_folios_put(struct folio_batch *folios)
{
	folios_put(folios);
}

bool sksm_folio_trylock(struct folio *folio)
{
	return folio_trylock(folio);
}

void sksm_folio_lock(struct folio *folio)
{
	folio_lock(folio);
}

/* A snapshot: SKSM_FOLIO_*. */
unsigned int sksm_folio_state(struct folio *folio)
{
	return (folio_test_anon(folio) ? SKSM_FOLIO_ANON : 0) |
	       (folio_test_ksm(folio) ? SKSM_FOLIO_KSM : 0) |
	       (folio_test_large(folio) ? SKSM_FOLIO_LARGE : 0) |
	       (folio_is_zone_device(folio) ? SKSM_FOLIO_ZONE_DEVICE : 0) |
	       (folio_contain_hwpoisoned_page(folio) ? SKSM_FOLIO_HWPOISON : 0) |
	       (folio_test_swapcache(folio) ? SKSM_FOLIO_SWAPCACHE : 0);
}

bool sksm_folio_maybe_dma_pinned(struct folio *folio)
{
	return folio_maybe_dma_pinned(folio);
}

void sksm_folio_mark_dirty(struct folio *folio)
{
	if (!folio_test_dirty(folio))
		folio_mark_dirty(folio);
}

bool sksm_folio_mapped(struct folio *folio)
{
	return folio_mapped(folio);
}

int sksm_folio_mapcount(struct folio *folio)
{
	return folio_mapcount(folio);
}

/* References of neither mappings nor the swap cache; for folios of one page. */
int sksm_folio_other_refs(struct folio *folio)
{
	return folio_ref_count(folio) - folio_mapcount(folio) - folio_test_swapcache(folio);
}

bool sksm_folio_ref_freeze(struct folio *folio, int count)
{
	return folio_ref_freeze(folio, count);
}

void sksm_folio_ref_unfreeze(struct folio *folio, int count)
{
	folio_ref_unfreeze(folio, count);
}

int sksm_folio_nid(struct folio *folio)
{
	return folio_nid(folio);
}

void *sksm_folio_mapping(struct folio *folio)
{
	/* Pairs with the release below: whoever sees a node sees it filled in. */
	return smp_load_acquire(&folio->mapping);
}

void sksm_folio_set_mapping(struct folio *folio, void *mapping)
{
	/* Pairs with the acquire above. */
	smp_store_release(&folio->mapping, mapping);
}

unsigned long sksm_folio_index(struct folio *folio)
{
	return folio->index;
}

void sksm_folio_set_index(struct folio *folio, unsigned long index)
{
	folio->index = index;
}

/* Ends exclusivity if there is any; false when the page may be pinned. */
bool sksm_folio_share(struct folio *folio)
{
	return !PageAnonExclusive(&folio->page) ||
	       !folio_try_share_anon_rmap_pte(folio, &folio->page);
}

int sksm_folio_split(struct folio *folio)
{
	return split_folio(folio);
}

void *sksm_folio_map(struct folio *folio)
{
	return kmap_local_folio(folio, 0);
}

void sksm_folio_unmap(void *addr)
{
	kunmap_local(addr);
}

void sksm_folio_add_rmap(struct folio *folio, struct vm_area_struct *vma, unsigned long addr)
{
	folio_add_anon_rmap_pte(folio, &folio->page, vma, addr, RMAP_NONE);
}

void sksm_folio_remove_rmap(struct folio *folio, struct vm_area_struct *vma)
{
	folio_remove_rmap_pte(folio, &folio->page, vma);
}

/* Page tables */

/* The anonymous folio that a huge PMD maps, with a reference, or NULL. */
struct folio *sksm_pmd_get_folio(struct vm_area_struct *vma, pmd_t *pmd, unsigned long addr)
{
	struct folio *folio = NULL;
	spinlock_t *ptl; /* the lock of the table that holds pmd */
	struct page *page;

	ptl = pmd_trans_huge_lock(pmd, vma);
	if (!ptl)
		return NULL;
	if (pmd_present(*pmd)) {
		page = vm_normal_page_pmd(vma, addr, *pmd);
		if (page && PageAnon(page)) {
			folio = page_folio(page);
			folio_get(folio);
		}
	}
	spin_unlock(ptl);
	return folio;
}

pte_t *sksm_pte_lock(struct mm_struct *mm, pmd_t *pmd, unsigned long addr, spinlock_t **ptl)
{
	return pte_offset_map_lock(mm, pmd, addr, ptl);
}

void sksm_pte_unlock(pte_t *pte, spinlock_t *ptl)
{
	pte_unmap_unlock(pte, ptl);
}

/*
 * The first of the entries *slot .. end - 1 that maps an anonymous folio which
 * is not merged: returns the folio, and sets *slot. The entries begin at first,
 * for address start.
 */
struct folio *sksm_pte_next_folio(struct vm_area_struct *vma, unsigned long start, pte_t *first,
				  unsigned long *slot, unsigned long end)
{
	for (; *slot < end; ++*slot) {
		pte_t pte = ptep_get(first + *slot);
		struct folio *folio;

		if (!pte_present(pte))
			continue;
		folio = vm_normal_folio(vma, start + *slot * PAGE_SIZE, pte);
		if (folio && folio_test_anon(folio) && !folio_test_ksm(folio))
			return folio;
	}
	return NULL;
}

/* Clears the entry if it maps the one page of the folio; the entry in *old. */
bool sksm_pte_clear_if(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep,
		       struct folio *folio, pte_t *old)
{
	pte_t pte = ptep_get(ptep);

	if (!pte_present(pte) || pte_pfn(pte) != folio_pfn(folio))
		return false;
	flush_cache_page(vma, addr, pte_pfn(pte));
	*old = ptep_get_and_clear(vma->vm_mm, addr, ptep);
	return true;
}

void sksm_pte_set(struct mm_struct *mm, unsigned long addr, pte_t *ptep, pte_t pte)
{
	set_pte_at(mm, addr, ptep, pte);
}

bool sksm_pte_write(pte_t pte)
{
	return pte_write(pte);
}

bool sksm_pte_dirty(pte_t pte)
{
	return pte_dirty(pte);
}

pte_t sksm_pte_clean_readonly(pte_t pte)
{
	return pte_wrprotect(pte_mkclean(pte));
}

/* The bits that belong to the mapping and not to the page. */
static pte_t sksm_pte_carry(pte_t pte, pte_t old)
{
	/* pte_mkdirty() sets this one too. */
	pte = pte_soft_dirty(old) ? pte_mksoft_dirty(pte) : pte_clear_soft_dirty(pte);
	if (pte_uffd_wp(old))
		pte = pte_mkuffd_wp(pte);
	return pte;
}

pte_t sksm_pte_for_folio(struct folio *folio, struct vm_area_struct *vma, pte_t old)
{
	pte_t pte = mk_pte(&folio->page, vma->vm_page_prot);

	return sksm_pte_carry(pte_mkdirty(pte_wrprotect(pte)), old);
}

pte_t sksm_pte_for_zero(struct vm_area_struct *vma, pte_t old)
{
	pte_t pte = pfn_pte(my_zero_pfn(0), vma->vm_page_prot);

	/* The dirty bit tells zero pages of KSM's kind, see is_ksm_zero_pte(). */
	return sksm_pte_carry(pte_mkdirty(pte_mkspecial(pte)), old);
}

void sksm_flush_tlb(struct vm_area_struct *vma, unsigned long start, unsigned long end)
{
	flush_tlb_range(vma, start, end);
}

bool sksm_tlb_flush_pending(struct mm_struct *mm)
{
	return mm_tlb_flush_pending(mm);
}

void sksm_smp_mb(void)
{
	/* Pairs with the one in the caller of gup_fast_pte_range(). */
	smp_mb();
}

void sksm_notifier_start(struct mmu_notifier_range *range, struct mm_struct *mm,
			 unsigned long start, unsigned long end)
{
	mmu_notifier_range_init(range, MMU_NOTIFY_CLEAR, 0, mm, start, end);
	mmu_notifier_invalidate_range_start(range);
}

void sksm_notifier_end(struct mmu_notifier_range *range)
{
	mmu_notifier_invalidate_range_end(range);
}

/* An anonymous page of this process became a zero page that KSM counts. */
void sksm_account_zero_page(struct mm_struct *mm)
{
	ksm_map_zero_page(mm);
	dec_mm_counter(mm, MM_ANONPAGES);
}

/* Reverse mapping */

struct anon_vma *sksm_anon_vma_get(struct anon_vma *anon_vma)
{
	get_anon_vma(anon_vma);
	return anon_vma;
}

void sksm_anon_vma_put(struct anon_vma *anon_vma)
{
	put_anon_vma(anon_vma);
}

bool sksm_anon_vma_trylock(struct anon_vma *anon_vma)
{
	return anon_vma_trylock_read(anon_vma);
}

void sksm_anon_vma_lock(struct anon_vma *anon_vma)
{
	anon_vma_lock_read(anon_vma);
}

void sksm_anon_vma_unlock(struct anon_vma *anon_vma)
{
	anon_vma_unlock_read(anon_vma);
}

struct anon_vma_chain *sksm_anon_vma_first(struct anon_vma *anon_vma, unsigned long pgoff)
{
	return anon_vma_interval_tree_iter_first(&anon_vma->rb_root, pgoff, pgoff);
}

unsigned long sksm_vma_address(struct vm_area_struct *vma, unsigned long pgoff)
{
	return vma_address(vma, pgoff, 1);
}

unsigned long sksm_vma_pgoff(struct vm_area_struct *vma, unsigned long addr)
{
	return linear_page_index(vma, addr);
}

bool sksm_mapped_at(struct folio *folio, struct vm_area_struct *vma, unsigned long addr)
{
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, PVMW_SYNC);

	if (!page_vma_mapped_walk(&pvmw))
		return false;
	page_vma_mapped_walk_done(&pvmw);
	return true;
}

/* Adds every process of this VMA's mm that wants to hear of a memory failure. */
void sksm_collect_procs(struct folio *folio, struct vm_area_struct *vma, unsigned long addr,
			struct list_head *to_kill, int force_early)
{
#ifdef CONFIG_MEMORY_FAILURE
	struct task_struct *tsk;

	rcu_read_lock();
	for_each_process(tsk) {
		struct task_struct *t = task_early_kill(tsk, force_early);

		if (t && t->mm == vma->vm_mm)
			add_to_kill_ksm(t, &folio->page, vma, to_kill, addr);
	}
	rcu_read_unlock();
#endif
}

/* Processes */

/* False when the process that owned the memory has gone. */
bool sksm_mm_owner(struct mm_struct *mm, u32 *uid, u32 *user_ns)
{
	struct task_struct *owner;
	const struct cred *cred;

	rcu_read_lock();
	owner = rcu_dereference(mm->owner);
	if (owner) {
		cred = __task_cred(owner);
		*uid = __kuid_val(cred->uid);
		*user_ns = cred->user_ns->ns.inum;
	}
	rcu_read_unlock();
	return owner;
}

u64 sksm_mm_cgroup(struct mm_struct *mm)
{
	struct mem_cgroup *memcg = get_mem_cgroup_from_mm(mm);
	u64 serial = memcg ? memcg->css.serial_nr : 0;

	mem_cgroup_put(memcg);
	return serial;
}

bool sksm_mmap_lock_is_contended(struct mm_struct *mm)
{
	return mmap_lock_is_contended(mm);
}

bool sksm_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

void sksm_cond_resched(void)
{
	cond_resched();
}

/* Observability */

void sksm_count(enum vm_event_item event, unsigned long pages)
{
	count_vm_events(event, pages);
}

void sksm_trace_call(struct mm_struct *mm, unsigned long scanned, unsigned long merged,
		     unsigned long published, unsigned long busy)
{
	trace_sksm_call(mm, scanned, merged, published, busy);
}

/* No folio: the zero page. */
void sksm_trace_merge(struct mm_struct *mm, unsigned long addr, struct folio *folio)
{
	trace_sksm_merge(mm, addr, folio ? folio_pfn(folio) : my_zero_pfn(addr));
}

void sksm_trace_publish(struct mm_struct *mm, unsigned long addr, struct folio *folio)
{
	trace_sksm_publish(mm, addr, folio_pfn(folio));
}

void sksm_trace_withdraw(struct mm_struct *mm, unsigned long addr, struct folio *folio)
{
	trace_sksm_withdraw(mm, addr, folio_pfn(folio));
}

void sksm_trace_busy(struct mm_struct *mm, unsigned long addr)
{
	trace_sksm_busy(mm, addr);
}

/* Deferred release */

static DECLARE_WORK(sksm_release_work, sksm_release);

void sksm_schedule_release(void)
{
	schedule_work(&sksm_release_work);
}

void sksm_flush_release(void)
{
	flush_work(&sksm_release_work);
}

subsys_initcall(sksm_init);
