/* Tries system calls that no box needs, by number, through every door that the processor has: syscall, syscall with
 * x32 numbers, and int 0x80. No C library: nothing stands between these numbers and the kernel.
 *
 * One line for each: DOOR NAME RESULT. RESULT is what the kernel said (0 or more: it went through; below: -errno), or
 * "signal N" if the process that tried was killed for it. Every call has a process of its own, and arguments that do
 * no harm where it is let through: outside of a box root gets some other answer than EPERM.
 *
 * gcc -static -nostdlib -o calls calls.c
 */

typedef unsigned long word;

enum { WRITE = 1, FORK = 57, EXIT = 60, WAIT4 = 61, X32 = 0x40000000 };

#define BAD ((word)1)     /* a pointer to nothing */
#define NO ((word)-1)     /* no descriptor, or all flags at once */
#define NEWNS 0x20000
#define NEWUSER 0x10000000
#define NEWNET 0x40000000

struct call {
    const char *name;
    int native, legacy; /* numbers of x86-64 and of i386; 0: not tried there */
    word args[5];
};

static const struct call calls[] = {
    {"getpid", 39, 20, {0}}, /* the probe of the door itself: this one is allowed */
    {"mount", 165, 21, {BAD, BAD, BAD, 0, 0}},
    {"umount2", 166, 52, {BAD, 0}},
    {"pivot_root", 155, 217, {BAD, BAD}},
    {"open_tree", 428, 428, {NO, BAD, NO}},
    {"move_mount", 429, 429, {NO, BAD, NO, BAD, NO}},
    {"fsopen", 430, 430, {BAD, 0}},
    {"fsconfig", 431, 431, {NO, NO, 0, 0, 0}},
    {"fsmount", 432, 432, {NO, 0, 0}},
    {"fspick", 433, 433, {NO, BAD, NO}},
    {"mount_setattr", 442, 442, {NO, BAD, NO, 0, 0}},
    {"name_to_handle_at", 303, 341, {NO, BAD, BAD, BAD, NO}},
    {"open_by_handle_at", 304, 342, {NO, BAD, 0}},
    {"unshare-mount", 272, 310, {NEWNS}},
    {"unshare-user", 272, 310, {NEWUSER}},
    {"unshare-net", 272, 310, {NEWNET}},
    {"setns", 308, 346, {NO, 0}},
    {"clone-user", 56, 120, {NEWUSER | 17, 0, 0, 0, 0}},
    {"clone3", 435, 435, {0, 0}},
    {"bpf", 321, 357, {NO, 0, 0}},
    {"perf_event_open", 298, 336, {BAD, 0, NO, NO, 0}},
    {"userfaultfd", 323, 374, {NO}},
    {"io_uring_setup", 425, 425, {0, BAD}},
    {"io_uring_enter", 426, 426, {NO, 0, 0, 0, 0}},
    {"io_uring_register", 427, 427, {NO, 0, 0, 0}},
    {"kexec_load", 246, 283, {0, NO, BAD, NO}},
    {"init_module", 175, 128, {BAD, 0, BAD}},
    {"finit_module", 313, 350, {NO, BAD, NO}},
    {"delete_module", 176, 129, {BAD, 0}},
    {"keyctl", 250, 288, {NO, 0, 0, 0, 0}},
    {"add_key", 248, 286, {BAD, BAD, 0, 0, 0}},
    {"request_key", 249, 287, {BAD, BAD, BAD, 0}},
    {"settimeofday", 164, 79, {BAD, 0}},
    {"clock_settime", 227, 264, {0, BAD}},
    {"swapon", 167, 87, {BAD, 0}},
    {"swapoff", 168, 115, {BAD}},
    {"quotactl", 179, 131, {NO, BAD, 0, 0}},
    {"quotactl_fd", 443, 443, {NO, 0, 0, 0}},
    {"reboot", 169, 88, {1, 2, 3, 0}},
    {"syslog", 103, 103, {NO, 0, 0}},
    {"acct", 163, 51, {BAD}},
    {"iopl", 172, 110, {4}},
    {"ioperm", 173, 101, {NO, NO, 0}},
    {"fanotify_init", 300, 338, {NO, NO}},
    {"pidfd_getfd", 438, 438, {NO, 0, NO}},
};

static long native(word number, const word *a) {
    register word r10 __asm__("r10") = a[3];
    register word r8 __asm__("r8") = a[4];
    register word r9 __asm__("r9") = 0;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static long legacy(word number, const word *a) {
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
                     : "r8", "r9", "r10", "r11", "memory");
    return (int)result;
}

static void say(const char *text) {
    word length = 0;
    while (text[length])
        length++;
    word args[5] = {1, (word)text, length, 0, 0};
    native(WRITE, args);
}

static void say_number(long number) {
    char digits[24], *at = digits + sizeof digits - 1;
    word left = number < 0 ? -(word)number : (word)number;
    *at = 0;
    do
        *--at = '0' + left % 10;
    while (left /= 10);
    if (number < 0)
        *--at = '-';
    say(at);
}

static void end(long code) {
    word args[5] = {(word)code, 0, 0, 0, 0};
    native(EXIT, args);
}

static void try(const char *door, const struct call *call, long (*enter)(word, const word *), word number) {
    word none[5] = {0};
    int status = 0;
    say(door);
    say(" ");
    say(call->name);
    say(" ");
    long child = native(FORK, none);
    if (child == 0) {
        long result = enter(number, call->args);
        if (result == 0 && call->name[0] == 'c' && call->name[1] == 'l' && call->args[0])
            end(0); /* the child of a clone that went through: its parent speaks */
        say_number(result);
        end(0);
    }
    word wait[5] = {(word)child, (word)&status, 0, 0, 0};
    native(WAIT4, wait);
    if (status & 0x7f) {
        say("signal ");
        say_number(status & 0x7f);
    }
    say("\n");
}

__attribute__((force_align_arg_pointer)) void _start(void) {
    for (word at = 0; at < sizeof calls / sizeof *calls; at++) {
        const struct call *call = &calls[at];
        try("syscall", call, native, (word)call->native);
        try("x32", call, native, X32 | (word)call->native);
        try("int80", call, legacy, (word)call->legacy);
    }
    end(0);
}
