/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM sksm

#if !defined(_TRACE_SKSM_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_SKSM_H

#include <linux/tracepoint.h>

/* The end of one MADV_MERGE call, with what it did, in pages. */
TRACE_EVENT(sksm_call,
	    TP_PROTO(struct mm_struct *mm, unsigned long scanned, unsigned long merged,
		     unsigned long published, unsigned long busy),
	    TP_ARGS(mm, scanned, merged, published, busy),
	    TP_STRUCT__entry(__field(struct mm_struct *, mm)
			     __field(unsigned long, scanned)
			     __field(unsigned long, merged)
			     __field(unsigned long, published)
			     __field(unsigned long, busy)),
	    TP_fast_assign(__entry->mm = mm;
			   __entry->scanned = scanned;
			   __entry->merged = merged;
			   __entry->published = published;
			   __entry->busy = busy;),
	    TP_printk("mm %p scanned %lu merged %lu published %lu busy %lu",
		      __entry->mm, __entry->scanned, __entry->merged,
		      __entry->published, __entry->busy)
);

/* Something that happened to one page of one process. */
DECLARE_EVENT_CLASS(sksm_page,
		    TP_PROTO(struct mm_struct *mm, unsigned long addr, unsigned long pfn),
		    TP_ARGS(mm, addr, pfn),
		    TP_STRUCT__entry(__field(struct mm_struct *, mm)
				     __field(unsigned long, addr)
				     __field(unsigned long, pfn)),
		    TP_fast_assign(__entry->mm = mm;
				   __entry->addr = addr;
				   __entry->pfn = pfn;),
		    TP_printk("mm %p addr %lx pfn %lx", __entry->mm, __entry->addr, __entry->pfn)
);

/* The mapping was redirected to the merged, or zero, page @pfn. */
DEFINE_EVENT(sksm_page, sksm_merge,
	     TP_PROTO(struct mm_struct *mm, unsigned long addr, unsigned long pfn),
	     TP_ARGS(mm, addr, pfn)
);

/* The page became a merged page in place. */
DEFINE_EVENT(sksm_page, sksm_publish,
	     TP_PROTO(struct mm_struct *mm, unsigned long addr, unsigned long pfn),
	     TP_ARGS(mm, addr, pfn)
);

/* Its only user took a merged page back. */
DEFINE_EVENT(sksm_page, sksm_withdraw,
	     TP_PROTO(struct mm_struct *mm, unsigned long addr, unsigned long pfn),
	     TP_ARGS(mm, addr, pfn)
);

/* The page was left alone as somebody else uses it. */
TRACE_EVENT(sksm_busy,
	    TP_PROTO(struct mm_struct *mm, unsigned long addr),
	    TP_ARGS(mm, addr),
	    TP_STRUCT__entry(__field(struct mm_struct *, mm)
			     __field(unsigned long, addr)),
	    TP_fast_assign(__entry->mm = mm;
			   __entry->addr = addr;),
	    TP_printk("mm %p addr %lx", __entry->mm, __entry->addr)
);

#endif /* _TRACE_SKSM_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
