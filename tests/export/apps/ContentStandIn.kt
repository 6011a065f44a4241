package android.content

class ContentResolver
