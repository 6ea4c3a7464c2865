/* Records a repeated operation from native code, for `impl/recording/_c10d_kernel.cpp`: the capsule
   `genlock.traces._fast_recorder.native` holds this. */

#include <Python.h>

#define NATIVE_RECORDER "genlock.traces._fast_recorder.native"

typedef struct {
    PyTypeObject *type; /* FastOperationRecorder */
    int (*begin)(PyObject *recorder, long long time_ns, long long *begun);
    void (*end)(PyObject *recorder, const long long *begun, long long time_ns);
} NativeRecorder;
