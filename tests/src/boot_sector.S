# The first sector of a machine's disk. It stands in for a boot loader: everything a loader would compute is already
# computed on the host, so that all that is left is to copy sectors to memory and to switch to long mode.
#
# The host fills in the table at `handover`: where the page tables, the boot parameters and the kernel's entry are, and
# then a list of (destination, first sector, number of sectors) that ends with a zero destination.

        .set    ATA_DATA, 0x1f0
        .set    ATA_COUNT, 0x1f2
        .set    ATA_LBA_LOW, 0x1f3
        .set    ATA_LBA_MIDDLE, 0x1f4
        .set    ATA_LBA_HIGH, 0x1f5
        .set    ATA_DEVICE, 0x1f6
        .set    ATA_COMMAND, 0x1f7
        .set    READ_SECTORS, 0x20
        .set    SECTORS_AT_ONCE, 128

        .code16
        .globl  _start
_start: cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $_start, %sp
        movw    $0x2401, %ax                    # BIOS: enable the A20 line
        int     $0x15
        cli
        lgdtl   gdt_pointer
        movl    %cr0, %eax
        incw    %ax                             # PE, which is clear in real mode
        movl    %eax, %cr0
        ljmp    $0x20, $protected_mode

        .code32
protected_mode:
        movl    $0x18, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $extents, %esi
extent: lodsl
        testl   %eax, %eax
        jz      enter_long_mode
        xchgl   %eax, %edi                      # destination
        lodsl
        xchgl   %eax, %ebx                      # next sector
        lodsl
        xchgl   %eax, %ebp                      # sectors left
command:
        pushl   $SECTORS_AT_ONCE
        popl    %ecx
        cmpl    %ecx, %ebp
        jae     1f
        movl    %ebp, %ecx
1:      movw    $ATA_COUNT, %dx
        movb    %cl, %al
        outb    %al, %dx
        movl    %ebx, %eax
        incl    %edx
        outb    %al, %dx                        # ATA_LBA_LOW
        shrl    $8, %eax
        incl    %edx
        outb    %al, %dx                        # ATA_LBA_MIDDLE
        shrl    $8, %eax
        incl    %edx
        outb    %al, %dx                        # ATA_LBA_HIGH
        shrl    $8, %eax
        orb     $0xe0, %al                      # LBA, first device
        incl    %edx
        outb    %al, %dx                        # ATA_DEVICE
        movb    $READ_SECTORS, %al
        incl    %edx
        outb    %al, %dx                        # ATA_COMMAND
        addl    %ecx, %ebx
        subl    %ecx, %ebp
sector: pushl   %ecx
        movw    $ATA_COMMAND, %dx
2:      inb     %dx, %al
        andb    $0x88, %al                      # busy, data request
        cmpb    $0x08, %al
        jne     2b
        movw    $ATA_DATA, %dx
        movl    $512 / 4, %ecx
        rep insl
        popl    %ecx
        loop    sector
        testl   %ebp, %ebp
        jnz     command
        jmp     extent

enter_long_mode:
        movl    %cr4, %eax
        orb     $0x20, %al                      # PAE
        movl    %eax, %cr4
        movl    page_tables, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx               # EFER
        rdmsr
        orb     $1, %ah                         # LME
        wrmsr
        movl    boot_parameters, %esi           # where the 64-bit boot protocol wants it
        movl    %cr0, %eax
        orl     $0x80000000, %eax               # PG
        movl    %eax, %cr0
        ljmp    $0x10, $long_mode

        .code64
long_mode:
        movl    kernel_entry, %eax
        jmp     *%rax

        .balign 8
gdt:    .quad   0
        .quad   0
        .quad   0x00af9b000000ffff              # 0x10: 64-bit code, where the boot protocol wants it
        .quad   0x00cf93000000ffff              # 0x18: data, likewise
        .quad   0x00cf9b000000ffff              # 0x20: 32-bit code
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .org    0x1b8
handover:
page_tables:
        .long   0
boot_parameters:
        .long   0
kernel_entry:
        .long   0
extents:
        .fill   52, 1, 0                        # four extents and the end
        .org    0x1fe
        .word   0xaa55
