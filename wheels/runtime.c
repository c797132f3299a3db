/* The functions that code compiled by Numba calls, so that kernels run where there is no Numba.

   A kernel allocates memory of its own, which is counted: struct MemInfo of numba/core/runtime/nrt.cpp. What it raises,
   it can only raise because there is no memory: its caller then writes an unraisable MemoryError, as with Numba. */

#include <stddef.h>
#include <stdint.h>

extern void *malloc(size_t);
extern void free(void *);
extern int PyGILState_Ensure(void);
extern void PyGILState_Release(int);
extern void *PyErr_NoMemory(void);

typedef struct {
    size_t count;
    void (*destroy)(void *, size_t, void *);
    void *argument;
    void *data;
    size_t size;
    void *allocator;
} MemInfo;

void *NRT_MemInfo_alloc_aligned(size_t size, unsigned align)
{
    MemInfo *info = size + align + sizeof(MemInfo) < size ? NULL : malloc(sizeof(MemInfo) + size + align);
    if (info == NULL)
        return NULL;
    uintptr_t start = (uintptr_t)(info + 1);
    *info = (MemInfo){1, NULL, NULL, (void *)(align ? (start + align - 1) / align * align : start), size, NULL};
    return info;
}

void NRT_MemInfo_call_dtor(MemInfo *info)
{
    if (info->destroy)
        info->destroy(info->data, info->size, info->argument);
    free(info);
}

void NRT_Free(void *memory) { free(memory); }

void numba_gil_ensure(int *state) { *state = PyGILState_Ensure(); }

void numba_gil_release(int *state) { PyGILState_Release(*state); }

void *numba_unpickle(const char *data, int size, const char *digest) { return NULL; }

void *numba_runtime_build_excinfo_struct(void *builder, void *arguments) { return NULL; }

int numba_do_raise(void *exception)
{
    PyErr_NoMemory();
    return 0;
}

/* The strides of an array in another shape: kernels only ask for contiguous ones. */
int numba_attempt_nocopy_reshape(intptr_t nd, const intptr_t *dims, const intptr_t *strides, intptr_t new_nd,
                                 const intptr_t *new_dims, intptr_t *new_strides, intptr_t itemsize, int fortran)
{
    intptr_t step = itemsize;
    for (intptr_t i = nd - 1; i >= 0; step *= dims[i--])
        if (strides[i] != step && dims[i] != 1)
            return 0;
    step = itemsize;
    for (intptr_t i = new_nd - 1; i >= 0; step *= new_dims[i--])
        new_strides[i] = step;
    return !fortran;
}
