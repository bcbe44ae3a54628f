// SPDX-License-Identifier: GPL-2.0
/*
 * Submit one write bio to an AoE disk, and report what happens to its page.
 *
 * Built and loaded by scripts/kernel-lab; see scripts/README.md. A case is written to
 * the module parameter "run", as a kind of memory and the steps of an event:
 *
 *	echo raw stale frees nosg >/sys/module/kernel_lab/parameters/run
 *
 * Each step and each change of the page is a line "lab: NAME KEY=VALUE..." in the kernel
 * log. The qdisc "kernel_lab" holds back the first frame of the write if the event needs
 * it; a hook before the NIC's driver holds back TX completion by a reference to the skb.
 */

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/if_ether.h>
#include <linux/if_vlan.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/sched/task_stack.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#include <net/pkt_sched.h>
#include <net/sch_generic.h>

#define DISK "/dev/etherd/e0.0"
#define NIC "eth0"
#define SECTOR 8
#define SUBPAGE 1024
#define SUBMITTED 0x5a
#define REWRITTEN 0xa5
#define STRANGERS 0xc3
#define DRAINED 64

/* Offsets in a frame: the AoE command, the ATA command, the data. */
#define AOE_FLAGS 14
#define AOE_COMMAND 19
#define ATA_COMMAND 27
#define DATA 36
#define RESPONSE 0x08

enum kind { PAGE, SLAB, JBD_SLAB, LARGE_SLAB, LARGE_KMALLOC, RAW, STACK, VMALLOC, KINDS };

static const char *const kinds[KINDS] = {
	"page", "slab", "jbd_slab", "large_slab", "large_kmalloc", "raw", "stack",
	"vmalloc"
};

struct memory {
	void *address;		/* of the allocation */
	struct page *page;	/* the page of the bio */
	unsigned int offset;
	unsigned int length;
};

static struct {
	bool stale, late, duplicate, fails, frees, reallocates, rewrites;
	bool nosg, cow;
	bool policy_a, policy_c;
} event;

static const struct { const char *word; bool *flag; } words[] = {
	{ "stale", &event.stale },
	{ "late", &event.late },
	{ "duplicate", &event.duplicate },
	{ "fails", &event.fails },
	{ "frees", &event.frees },
	{ "reallocates", &event.reallocates },
	{ "rewrites", &event.rewrites },
	{ "nosg", &event.nosg },
	{ "cow", &event.cow },
	{ "policy_a", &event.policy_a },
	{ "policy_c", &event.policy_c },
};

static struct page *tracked;		/* reported on, NULL before and after a case */
static const char *who;			/* who allocates or frees memory at the moment */
static bool holding;			/* the qdisc holds the first frame of the write */
static bool ends_late;			/* TX completion is held back */
static bool repeats;			/* the next response is received twice */
static struct Qdisc *root;
static struct sk_buff_head held;
static struct sk_buff *unfinished;	/* its TX completion is held back */
static struct net_device *nic;
static DECLARE_COMPLETION(ended);
static int status;

#define report(format, ...) pr_info("lab: " format "\n", ##__VA_ARGS__)

/* --- frames --------------------------------------------------------------------- */

/* Return true if the skb is an AoE frame with a WRITE; all headers are linear. */
static bool is_write(const struct sk_buff *skb)
{
	const u8 *frame = skb->data;

	return skb->protocol == htons(ETH_P_AOE) && skb_headlen(skb) >= DATA &&
	       !frame[AOE_COMMAND] &&
	       (frame[ATA_COMMAND] == 0x30 || frame[ATA_COMMAND] == 0x34);
}

static bool carries_submitted(const struct sk_buff *skb)
{
	unsigned int at = DATA;
	u8 byte;

	for (; at < skb->len; at++)
		if (skb_copy_bits(skb, at, &byte, 1) || byte != SUBMITTED)
			return false;
	return true;
}

/* --- the qdisc ------------------------------------------------------------------ */

static int lab_enqueue(struct sk_buff *skb, struct Qdisc *sch, struct sk_buff **to_free)
{
	if (!holding || !is_write(skb))
		return qdisc_enqueue_tail(skb, sch);
	if (skb_queue_empty(&held)) {
		report("held count=%d", page_count(tracked));
		__skb_queue_tail(&held, skb);
		return NET_XMIT_SUCCESS;
	}
	if (event.fails) {	/* the device gets no response to a retransmission */
		report("lost");
		return qdisc_drop(skb, sch, to_free);
	}
	return qdisc_enqueue_tail(skb, sch);
}

static struct sk_buff *lab_dequeue(struct Qdisc *sch)
{
	struct sk_buff *skb = holding ? NULL : __skb_dequeue(&held);

	if (!skb)
		skb = qdisc_dequeue_head(sch);
	/* As validate_xmit_vlan() does for a tag that finds no headroom. */
	if (skb && event.cow && is_write(skb))
		skb_cow_head(skb, skb_headroom(skb) + VLAN_HLEN);
	return skb;
}

static int lab_init(struct Qdisc *sch, struct nlattr *arg, struct netlink_ext_ack *extack)
{
	root = sch;
	return 0;
}

static struct Qdisc_ops lab_qdisc = {
	.id = "kernel_lab",
	.enqueue = lab_enqueue,
	.dequeue = lab_dequeue,
	.peek = qdisc_peek_dequeued,
	.init = lab_init,
	.reset = qdisc_reset_queue,
	.owner = THIS_MODULE,
};

/* --- probes --------------------------------------------------------------------- */

static bool is_tracked(const struct page *page, unsigned int order)
{
	unsigned long first = page_to_pfn(page);

	return tracked && page_to_pfn(tracked) - first < 1UL << order;
}

static void on_start_xmit(void *data, const struct sk_buff *skb,
			  const struct net_device *dev)
{
	if (!tracked || dev != nic || !is_write(skb))
		return;
	report("xmit count=%d right=%d fragments=%d", page_count(tracked),
	       carries_submitted(skb), skb_shinfo(skb)->nr_frags);
	if (ends_late && !unfinished)
		unfinished = skb_get((struct sk_buff *)skb);
}

/* The network runs with softirqs disabled, others hardly free pages there. */
static const char *actor(void)
{
	if (who)
		return who;
	return in_softirq() ? "network" : "others";
}

static void on_page_free(void *data, struct page *page, unsigned int order)
{
	if (is_tracked(page, order))
		report("page_free by=%s order=%u", actor(), order);
}

static void on_page_alloc(void *data, struct page *page, unsigned int order, gfp_t gfp,
			  int migratetype)
{
	if (page && is_tracked(page, order))
		report("page_alloc by=%s order=%u", actor(), order);
}

static struct { const char *name; void *probe; struct tracepoint *point; } probes[] = {
	{ "net_dev_start_xmit", on_start_xmit },
	{ "mm_page_free", on_page_free },
	{ "mm_page_alloc", on_page_alloc },
};

static void find_tracepoint(struct tracepoint *point, void *data)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(probes); i++)
		if (!strcmp(point->name, probes[i].name))
			probes[i].point = point;
}

static int on_last_put(struct kprobe *probe, struct pt_regs *regs)
{
	if (tracked && (struct page *)regs->di == compound_head(tracked))
		report("put_to_zero");
	return 0;
}

static int on_expanded(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	if (tracked && in_softirq())
		report("private_head count=%d", page_count(tracked));
	return 0;
}

static struct kprobe last_put = {
	.symbol_name = "__folio_put", .pre_handler = on_last_put,
};

static struct kretprobe expanded = {
	.kp.symbol_name = "pskb_expand_head", .handler = on_expanded,
};

static int on_response(struct sk_buff *skb, struct net_device *dev,
		       struct packet_type *type, struct net_device *original)
{
	const u8 *frame = skb_mac_header(skb);
	struct sk_buff *copy;

	if (repeats && frame[AOE_FLAGS] & RESPONSE && !frame[AOE_COMMAND]) {
		repeats = false;
		copy = skb_copy(skb, GFP_ATOMIC);
		if (copy) {
			report("duplicate");
			netif_rx(copy);
		}
	}
	kfree_skb(skb);
	return NET_RX_SUCCESS;
}

static struct packet_type responses = {
	.type = htons(ETH_P_AOE), .func = on_response,
};

/* --- memory --------------------------------------------------------------------- */

static struct kmem_cache *cache;

static bool allocate(struct memory *memory, enum kind kind, gfp_t gfp)
{
	unsigned int skipped = PAGE_SIZE;	/* the second page is submitted */

	memory->offset = 0;
	memory->length = PAGE_SIZE;
	switch (kind) {
	case PAGE:
		memory->address = (void *)__get_free_page(gfp);
		skipped = 0;
		break;
	case SLAB:
	case JBD_SLAB:
		memory->address = kind == SLAB ? kmalloc(SUBPAGE, gfp)
					       : kmem_cache_alloc(cache, gfp);
		memory->length = SUBPAGE;
		skipped = 0;
		break;
	case LARGE_SLAB:
		memory->address = kmalloc(2 * PAGE_SIZE, gfp);
		break;
	case LARGE_KMALLOC:
		memory->address = kmalloc(4 * PAGE_SIZE, gfp);
		break;
	case RAW:
		memory->address = (void *)__get_free_pages(gfp, 1);
		break;
	case STACK:
		memory->address = task_stack_page(current);
		break;
	case VMALLOC:
		memory->address = vmalloc(2 * PAGE_SIZE);
		break;
	default:
		return false;
	}
	if (!memory->address)
		return false;
	if (is_vmalloc_addr(memory->address))
		memory->page = vmalloc_to_page(memory->address + skipped);
	else
		memory->page = virt_to_page(memory->address + skipped);
	memory->offset = offset_in_page(memory->address);
	return true;
}

static void release(struct memory *memory, enum kind kind, const char *owner)
{
	report("frees by=%s count=%d", owner, page_count(tracked));
	who = owner;
	switch (kind) {
	case PAGE:
		free_page((unsigned long)memory->address);
		break;
	case JBD_SLAB:
		kmem_cache_free(cache, memory->address);
		break;
	case RAW:
		free_pages((unsigned long)memory->address, 1);
		break;
	case VMALLOC:
		vfree(memory->address);
		break;
	case STACK:
		break;
	default:
		kfree(memory->address);
	}
	who = NULL;
	memory->address = NULL;
}

static void fill(struct memory *memory, int byte)
{
	memset(page_address(memory->page) + memory->offset, byte, memory->length);
}

/* Allocate pages as others do, so that the kernel notices a corrupt free list. */
static void drain(void)
{
	static struct page *blocks[DRAINED];
	int i, times = 0;

	who = "others";
	for (i = 0; i < DRAINED; i++) {		/* single pages and pairs in turn */
		blocks[i] = alloc_pages(GFP_KERNEL, i & 1);
		times += blocks[i] && is_tracked(blocks[i], i & 1);
	}
	report("drained times=%d", times);
	tracked = NULL;
	for (i = 0; i < DRAINED; i++)
		if (blocks[i])
			__free_pages(blocks[i], i & 1);
}

/* --- a case --------------------------------------------------------------------- */

static void on_end(struct bio *bio)
{
	if (event.policy_a)
		page_ref_dec(compound_head(tracked));
	status = blk_status_to_errno(bio->bi_status);
	report("end_io status=%d count=%d", status, page_count(tracked));
	if (event.policy_c) {
		who = "owner";
		put_page(tracked);
		who = NULL;
	}
	complete(&ended);
}

static void set_scatter_gather(bool on)
{
	rtnl_lock();
	if (on)
		nic->wanted_features |= NETIF_F_SG;
	else
		nic->wanted_features &= ~NETIF_F_SG;
	netdev_update_features(nic);
	rtnl_unlock();
	report("nic sg=%d", !!(nic->features & NETIF_F_SG));
}

static void let_go(void)
{
	report("released count=%d", page_count(tracked));
	holding = ends_late = false;
	if (!skb_queue_empty(&held))
		__netif_schedule(root);
	kfree_skb(unfinished);
	unfinished = NULL;
}

static int submit(struct block_device *disk, enum kind kind)
{
	struct memory memory, strangers = {};
	struct bio *bio;
	bool atomic;

	if (!allocate(&memory, kind, GFP_KERNEL))
		return -ENOMEM;
	fill(&memory, SUBMITTED);
	tracked = memory.page;
	report("submit pfn=%#lx count=%d compound=%d slab=%d", page_to_pfn(tracked),
	       page_count(tracked), PageCompound(tracked), PageSlab(compound_head(tracked)));
	/* Policy a is part of a driver, which counts when it gets the bio and before
	 * bi_end_io; c is part of a file system. */
	if (event.policy_a)
		page_ref_inc(compound_head(tracked));
	if (event.policy_c)
		get_page(tracked);
	holding = event.stale || event.fails;
	ends_late = event.late;
	repeats = event.duplicate;
	bio = bio_alloc(disk, 1, REQ_OP_WRITE, GFP_KERNEL);
	bio->bi_iter.bi_sector = SECTOR;
	bio->bi_end_io = on_end;
	__bio_add_page(bio, memory.page, memory.length, memory.offset);
	submit_bio(bio);
	if (!wait_for_completion_timeout(&ended, 20 * HZ))
		report("timeout");

	/* With softirqs off nothing else allocates or frees pages until the held frame
	 * leaves, on one CPU. vfree() and vmalloc() may sleep. */
	atomic = kind != VMALLOC;
	if (atomic)
		local_bh_disable();
	if (event.frees)
		release(&memory, kind, "owner");
	who = "new_owner";
	if (event.reallocates && allocate(&strangers, kind, GFP_ATOMIC)) {
		fill(&strangers, STRANGERS);
		report("reallocated same=%d", strangers.page == memory.page &&
		       strangers.offset == memory.offset);
	}
	who = NULL;
	if (event.rewrites)
		fill(&memory, REWRITTEN);
	let_go();
	if (atomic)
		local_bh_enable();
	msleep(200);
	report("settled count=%d", page_count(tracked));
	bio_put(bio);
	if (memory.address)
		release(&memory, kind, "owner");
	if (strangers.address)
		release(&strangers, kind, "new_owner");
	drain();
	return 0;
}

static int run_case(const char *text, const struct kernel_param *param)
{
	char *copy = kstrdup(strim((char *)text), GFP_KERNEL), *rest = copy, *word;
	int i, error = -EINVAL;
	enum kind kind = KINDS;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
	struct block_device *disk;
#else
	struct file *disk;
#endif

	if (!copy)
		return -ENOMEM;
	while ((word = strsep(&rest, " "))) {
		i = match_string(kinds, KINDS, word);
		if (i >= 0) {
			kind = i;
			continue;
		}
		for (i = 0; i < ARRAY_SIZE(words); i++)
			if (!strcmp(word, words[i].word))
				*words[i].flag = true;
	}
	kfree(copy);
	nic = dev_get_by_name(&init_net, NIC);
	if (kind == KINDS || !nic)
		goto out;
	set_scatter_gather(!event.nosg);
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
	disk = blkdev_get_by_path(DISK, FMODE_READ | FMODE_WRITE, NULL);
	error = PTR_ERR_OR_ZERO(disk);
	if (!error)
		error = submit(disk, kind);
#else	/* 6.9 and later; 6.5 to 6.8 have neither */
	disk = bdev_file_open_by_path(DISK, BLK_OPEN_READ | BLK_OPEN_WRITE, NULL, NULL);
	error = PTR_ERR_OR_ZERO(disk);
	if (!error)
		error = submit(file_bdev(disk), kind);
#endif
out:
	report("done error=%d", error);
	return error;
}

static const struct kernel_param_ops run_ops = { .set = run_case };
module_param_cb(run, &run_ops, NULL, 0200);
MODULE_PARM_DESC(run, "kind of memory and steps of the event");

static int __init lab_start(void)
{
	int i, error;

	skb_queue_head_init(&held);
	cache = kmem_cache_create("kernel_lab", SUBPAGE, SUBPAGE, 0, NULL);
	if (!cache)
		return -ENOMEM;
	error = register_qdisc(&lab_qdisc);
	if (error)
		return error;
	for_each_kernel_tracepoint(find_tracepoint, NULL);
	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		error = probes[i].point ? tracepoint_probe_register(
			probes[i].point, probes[i].probe, NULL) : -ENOENT;
		if (error)
			return error;
	}
	error = register_kprobe(&last_put);
	if (!error)
		error = register_kretprobe(&expanded);
	if (!error)
		dev_add_pack(&responses);
	return error;
}

module_init(lab_start);
MODULE_DESCRIPTION("Submits one write bio to an AoE disk and reports on its page");
MODULE_LICENSE("GPL");
