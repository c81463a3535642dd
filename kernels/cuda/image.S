/* The fatbin as bytes (kernels.h). HORA_CUDA_FATBIN: its path. */
    .section .rodata
    .balign 16
    .globl hora_cuda_image
    .hidden hora_cuda_image
    .type hora_cuda_image, %object
hora_cuda_image:
    .incbin HORA_CUDA_FATBIN
hora_cuda_image_end:
    .size hora_cuda_image, hora_cuda_image_end - hora_cuda_image
    .balign 8
    .globl hora_cuda_image_bytes
    .hidden hora_cuda_image_bytes
    .type hora_cuda_image_bytes, %object
hora_cuda_image_bytes:
    .quad hora_cuda_image_end - hora_cuda_image
    .size hora_cuda_image_bytes, 8
    .section .note.GNU-stack, "", %progbits
